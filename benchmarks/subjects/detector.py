"""A small detector in the manner of Deformable DETR, of layers that any attention goes into.

What it has is what leaves PyTorch with a real one: a backbone, feature levels, padding, an encoder
and a decoder whose queries refine their boxes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects.plain_attention import PlainMSDeformAttn
from stdeform import MSDeformAttn, reference_grid, valid_ratios

NATIVE, PLAIN = "stdeform", "plain"  # the latter written with grid_sample, without this library
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    NATIVE: MSDeformAttn,
    PLAIN: PlainMSDeformAttn,
}
STRIDES = (8, 16, 32)
_HEADS, _POINTS, _CLASSES = 8, 4, 91


class Detector(nn.Module):
    """Images to logits and boxes.

    Args:
        attention: Of `ATTENTIONS`: makes a layer from channels, levels, heads and points.
        width: Channels C.
        num_layers: Of the encoder, and as many of the decoder.
        num_queries: Of the decoder.
    """

    def __init__(
        self,
        attention: Callable[..., nn.Module],
        *,
        width: int = 256,
        num_layers: int = 2,
        num_queries: int = 100,
    ) -> None:
        super().__init__()
        self._width = width
        channels = (3, width // 8, width // 4, width // 2, width, width)
        stages = [_halve(*pair) for pair in itertools.pairwise(channels)]
        self.backbone = nn.ModuleList([nn.Sequential(*stages[:3]), *stages[3:]])
        self.projections = nn.ModuleList([nn.Conv2d(each, width, 1) for each in channels[3:]])
        self.levels = nn.Parameter(torch.randn(len(STRIDES), width))

        def layer(layer_class: type[_Layer]) -> _Layer:
            made = attention(width, len(STRIDES), _HEADS, _POINTS)
            return layer_class(made, width)

        self.encoder = nn.ModuleList([layer(_Layer) for _ in range(num_layers)])
        self.decoder = nn.ModuleList([layer(_DecoderLayer) for _ in range(num_layers)])
        self.queries = nn.Parameter(torch.randn(2, num_queries, width))  # places and contents
        self.points = nn.Linear(width, 2)
        self.classes = nn.Linear(width, _CLASSES)
        self.boxes = nn.ModuleList([nn.Linear(width, 4) for _ in range(num_layers)])

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Detects.

        Args:
            images: [B, 3, H, W]; H and W are multiples of 32.
            padding: [B, H, W], bool, True where an image is padding, at the right and the bottom.

        Returns:
            Logits [B, Q, 91], and boxes [B, Q, 4] as centre and size in fractions of the image.
        """
        cells, x = [], images
        for stage, project in zip(self.backbone, self.projections, strict=True):
            x = stage(x)
            cells.append(project(x))
        masks = [padding[:, ::stride, ::stride] for stride in STRIDES]
        shapes = [(each.shape[-2], each.shape[-1]) for each in cells]
        ratios = torch.stack([valid_ratios(mask) for mask in masks], 1)  # [B, L, 2]
        grid = reference_grid(shapes, ratios)  # [B, S, L, 2]
        x = torch.cat([each.flatten(2) for each in cells], 2).transpose(1, 2)
        mask = torch.cat([each.flatten(1) for each in masks], 1)
        of_level = [
            level.expand(height * width, -1)
            for level, (height, width) in zip(self.levels.unbind(), shapes, strict=True)
        ]
        position = _wave(grid[:, :, 0] / ratios[:, None, 0], self._width) + torch.cat(of_level)
        for layer in self.encoder:
            x = layer(x, position, grid, x, shapes, mask)
        return self._decode(x, ratios, shapes, mask)

    def _decode(
        self, x: Tensor, ratios: Tensor, shapes: Sequence[tuple[int, int]], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        place, content = (each.expand(len(x), -1, -1) for each in self.queries.unbind())
        boxes = self.points(place).sigmoid()  # points at first
        for layer, refine in zip(self.decoder, self.boxes, strict=True):
            num_axes = boxes.shape[-1]
            of_levels = ratios.repeat(1, 1, num_axes // 2)[:, None] * boxes[:, :, None]
            content = layer(content, place, of_levels, x, shapes, mask)
            steps = refine(content)
            moved = steps[..., :num_axes] + torch.logit(boxes, eps=1e-5)
            boxes = torch.cat((moved, steps[..., num_axes:]), -1).sigmoid()
        return self.classes(content), boxes


class _Layer(nn.Module):
    """Deformable attention to cells and a feed-forward network: a layer of the encoder."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.last_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, position: Tensor, points: Tensor, cells: Tensor, shapes: Any, mask: Tensor
    ) -> Tensor:
        x = self.norm(x + self.attention(x + position, points, cells, shapes, None, mask))
        out: Tensor = self.last_norm(x + self.feedforward(x))
        return out


class _DecoderLayer(_Layer):
    """The same after attention among the queries."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__(attention, width)
        self.among = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.first_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, position: Tensor, points: Tensor, cells: Tensor, shapes: Any, mask: Tensor
    ) -> Tensor:
        query = x + position
        x = self.first_norm(x + self.among(query, query, x, need_weights=False)[0])
        return super().forward(x, position, points, cells, shapes, mask)


def _halve(channels_in: int, channels_out: int) -> nn.Sequential:
    """A stage of the backbone: half the height and width."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def _wave(places: Tensor, width: int) -> Tensor:  # [B, S, 2] -> [B, S, C]
    """Sines and cosines of places, for half of the channels each axis."""
    steps = torch.arange(width // 4, device=places.device) * (-4 * math.log(10) * 4 / width)
    angles = places[..., None] * (2 * math.pi * steps.exp())  # [B, S, 2, C / 4]
    return torch.cat((angles.sin(), angles.cos()), -1).flatten(-2)


def make_detectors(seed: int, **sizes: int) -> dict[str, Detector]:
    """The detector with each attention, all with the same random weights, in evaluation mode.

    Offsets and attention weights depend on the query, as in a trained model; at the start of
    training they do not.

    Args:
        seed: Of the weights.
        **sizes: Of `Detector`, where they are not the default ones.

    Returns:
        By the names of `ATTENTIONS`.
    """
    torch.manual_seed(seed)
    models = {name: Detector(attention, **sizes) for name, attention in ATTENTIONS.items()}
    first, *others = (model.eval().requires_grad_(False) for model in models.values())
    for name, parameter in first.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    for other in others:
        other.load_state_dict(first.state_dict())
    return models


def make_images(batch: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of noise and their padding: a quarter of each axis, of all images but the first."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, height, width, generator=generator)
    padding = torch.zeros(batch, height, width, dtype=torch.bool)
    padding[1:, height * 3 // 4 :] = True
    padding[1:, :, width * 3 // 4 :] = True
    return images.masked_fill(padding[:, None], 0), padding
