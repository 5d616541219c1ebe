"""Attention with its projections, and whole encoder layers: deformable beside dense.

Both kinds differ in the attention and what it projects alone: normalisation, feed-forward network,
input and gradient are the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import stdeform
from stdeform.testing import assert_close

from .answers import WrongAnswerError
from .prepared import Prepared
from .workloads import Workload

_FEEDFORWARD = 2048  # of VisTR and Deformable VisTR


class DeformableBlock(nn.Module):
    """`STDeformAttn` of every cell to the volume, around the cell itself."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._shapes = workload.spatial_shapes
        self.attention = stdeform.STDeformAttn(
            workload.num_heads * workload.head_dim,
            workload.num_heads,
            len(workload.spatial_shapes),
            workload.num_points,
            backend="native",
        )
        # Offsets that differ from cell to cell, around the layer's initial pattern.
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.01)
        self.points: Tensor
        self.register_buffer("points", stdeform.reference_grid(workload.spatial_shapes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] to [B, S, C]."""
        out: Tensor = self.attention(x, self.points, x, self._shapes)
        return out


class DenseBlock(nn.Module):
    """Attention of every cell to every cell, with the four projections of multi-head attention."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        width = workload.num_heads * workload.head_dim
        self._heads = workload.num_heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] to [B, S, C]."""
        query, key, value = (
            part.unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for part in self.inputs(x).chunk(3, -1)
        )
        attended = scaled_dot_product_attention(query, key, value)
        out: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """An encoder layer: attention and feed-forward network, each added and normalised."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, _FEEDFORWARD), nn.ReLU(), nn.Linear(_FEEDFORWARD, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] to [B, S, C]."""
        x = self.first_norm(x + self.attention(x))
        out: Tensor = self.second_norm(x + self.feedforward(x))
        return out


def _prepare(
    attention: Callable[[Workload], nn.Module], is_layer: bool, workload: Workload, seed: int
) -> Prepared:
    width = workload.num_heads * workload.head_dim
    torch.manual_seed(seed)
    x, grad_out = torch.randn(2, workload.batch, workload.num_cells, width)
    x.requires_grad_()
    block = attention(workload)
    module = Layer(block, width) if is_layer else block

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        out: Tensor = module(x)  # to which the weights belong
        return out

    return Prepared(run, (x, *module.parameters()), grad_out)


def check_block(workload: Workload, seed: int) -> None:
    """Holds the deformable block against its reference, on up to four frames of the workload.

    Raises:
        WrongAnswerError: It computes something else.
    """
    shapes = tuple((min(4, shape[0]), *shape[1:]) for shape in workload.spatial_shapes)
    torch.manual_seed(seed)
    block = DeformableBlock(dataclasses.replace(workload, spatial_shapes=shapes))
    x = torch.randn(1, block.points.shape[1], workload.num_heads * workload.head_dim)
    with torch.no_grad():
        found = block(x)
        block.attention.backend = "reference"
        expected = block.double()(x.double())
    try:
        assert_close(found, expected, "forward", "the attention block")
    except AssertionError as error:
        raise WrongAnswerError(str(error)) from error


# By what is compared and then by kind; each prepares itself for a workload and a seed.
BLOCKS: dict[str, dict[str, Callable[[Workload, int], Prepared]]] = {
    name: {
        "deformable": functools.partial(_prepare, DeformableBlock, is_layer),
        "dense": functools.partial(_prepare, DenseBlock, is_layer),
    }
    for name, is_layer in (("attention block", False), ("encoder layer", True))
}
