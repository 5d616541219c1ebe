"""Where the deformable layers of a model look: taken from what they are given in a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from defvis.models.attention import first_offsets
from stdeform import STDeformAttn
from stdeform.reference import sampling_locations

# From (T, H, W) of the cells to the queries that are wanted.
Wanted = Callable[[Sequence[int]], slice]


@dataclass(frozen=True)
class LayerPoints:
    """The samples of queries of one layer, of one clip.

    Attributes:
        shape: (T, H, W) of the cells.
        references: In fractions of the volume: points (x, y, t), [Q, 3], or boxes, [Q, 6].
        offsets: (x, y, t) as the layer predicts them, [Q, M, K, 3].
        weights: Attention weights, [Q, M, K]; the sum over a head is 1.
    """

    shape: tuple[int, int, int]
    references: Tensor
    offsets: Tensor
    weights: Tensor

    @property
    def locations(self) -> Tensor:
        """(x, y, t) of the samples as fractions of the volume, [Q, M, K, 3]."""
        references, offsets = self.references[None, :, None], self.offsets[None, :, :, None]
        return sampling_locations([self.shape], references, offsets)[0, :, :, 0]

    def reads(self) -> tuple[Tensor, Tensor]:
        """The two frames that a sample may read, and the weights with which it does, [Q, M, K, 2].

        Linear interpolation reads cells that do not exist as zeros, so weight is lost at the edges.
        """
        num_frames, height, width = self.shape
        positions = self.locations * self.locations.new_tensor((width, height, num_frames)) - 0.5
        x_y, t = positions[..., :2], positions[..., 2:]
        exists = torch.minimum(x_y + 1, x_y.new_tensor((width, height)) - x_y).clamp(0, 1).prod(-1)
        frames = torch.cat((t.floor(), t.floor() + 1), -1)
        weights = (self.weights * exists)[..., None] * (1 - (t - frames).abs())
        weights = weights * ((frames >= 0) & (frames < num_frames))
        return frames.clamp(0, num_frames - 1).long(), weights

    def untrained(self, layer: STDeformAttn) -> LayerPoints:
        """What the layer would sample around the same references with the weights it starts with.

        That is its first pattern, whatever the query, with equal weights.
        """
        points = self.weights.shape[-1]
        offsets = first_offsets(layer, points).to(self.offsets).expand_as(self.offsets)
        return replace(self, offsets=offsets, weights=torch.full_like(self.weights, 1 / points))


@contextlib.contextmanager
def watched(
    layers: Iterable[STDeformAttn], wanted: Wanted = lambda _: slice(None)
) -> Iterator[dict[STDeformAttn, LayerPoints]]:
    """Collects the samples of layers of one level, for the first clip of a batch.

    Args:
        layers: Layers that will be called once.
        wanted: Which queries.

    Yields:
        A dictionary that is filled by the forward pass.
    """
    seen: dict[STDeformAttn, LayerPoints] = {}
    handles = [layer.register_forward_pre_hook(partial(_look, seen, wanted)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _look(
    seen: dict[STDeformAttn, LayerPoints],
    wanted: Wanted,
    layer: nn.Module,
    arguments: tuple[Any, ...],
) -> None:
    assert isinstance(layer, STDeformAttn)
    queries, references, _, shapes = arguments[:4]
    chosen = wanted(shapes[0])
    queries = queries[0, chosen]
    samples = (layer.num_heads, -1)
    seen[layer] = LayerPoints(
        tuple(shapes[0]),
        references[0, chosen, 0],
        layer.sampling_offsets(queries).unflatten(-1, (*samples, 3)),
        layer.attention_weights(queries).unflatten(-1, samples).softmax(-1),
    )


def deformable(attention: object) -> STDeformAttn:
    """The layer of an attention of a model.

    Raises:
        ValueError: If it is not deformable in the volume, or has several levels.
    """
    layer = getattr(attention, "deform", None)
    if not isinstance(layer, STDeformAttn):
        raise ValueError(
            "sampling points need attention 'deformable' or 'own-frame', got "
            f"{type(attention).__name__}"
        )
    if layer.num_levels > 1:
        raise ValueError(f"sampling points are of one level, got {layer.num_levels} levels")
    return layer
