"""The layers that tests of them take, trained a little, with inputs and what they should give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stdeform import MSDeformAttn, STDeformAttn, num_cells
from stdeform.testing import composite_from_offsets

VIDEO = [(4, 3, 5), (2, 2, 3)]  # 60 + 12 cells
IMAGE = [(6, 5), (3, 3)]  # 30 + 9 cells

Layer = STDeformAttn | MSDeformAttn


def video_layer(num_points: Any = 6, **settings: Any) -> STDeformAttn:
    return STDeformAttn(32, num_levels=2, num_heads=4, num_points=num_points, **settings)


def image_layer(num_points: Any = 3, **settings: Any) -> MSDeformAttn:
    return MSDeformAttn(32, num_levels=2, num_heads=4, num_points=num_points, **settings)


LAYERS: dict[str, tuple[Callable[..., Layer], list[tuple[int, ...]]]] = {
    "video": (video_layer, VIDEO),
    "image": (image_layer, IMAGE),
}


def trained(layer: Layer) -> Layer:
    """Weights as after some training: every parameter matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
        parameter.data += noise.to(parameter)
    return layer


def inputs(
    axes: str, *, batch: int = 2, num_queries: int = 7, boxes: bool = False
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, ...]]]:
    shapes = LAYERS[axes][1]
    generator = torch.Generator().manual_seed(0)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator)

    num_axes = len(shapes[0])
    points = uniform(batch, num_queries, len(shapes), num_axes)
    if boxes:
        points = torch.cat([points, 0.1 + 0.4 * uniform(*points.shape)], -1)
    value = uniform(batch, sum(map(num_cells, shapes)), 32) - 0.5
    return uniform(batch, num_queries, 32) - 0.5, points, value, shapes


def by_hand(
    layer: Layer, query: Tensor, points: Tensor, value: Tensor, shapes: Any, mask: Any = None
) -> Tensor:
    """What the layer should give, from its parameters and `grid_sample`."""
    heads, levels, k = layer.num_heads, layer.num_levels, layer.num_points
    batch, num_queries, channels = query.shape
    linear = nn.functional.linear
    offsets = linear(query, layer.sampling_offsets.weight, layer.sampling_offsets.bias)
    logits = linear(query, layer.attention_weights.weight, layer.attention_weights.bias)
    rows = linear(value, layer.value_proj.weight, layer.value_proj.bias)
    if mask is not None:
        rows = rows * ~mask[..., None]
    out = composite_from_offsets(
        rows.view(batch, -1, heads, channels // heads),
        shapes,
        points,
        offsets.view(batch, num_queries, heads, levels, k, len(shapes[0])),
        logits.view(batch, num_queries, heads, levels, k),
    )
    return linear(out, layer.output_proj.weight, layer.output_proj.bias)
