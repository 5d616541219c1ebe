"""The layers at the start: where heads look, weights, projections."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stdeform import MSDeformAttn, STDeformAttn
from tests.support.layers import (
    LAYERS,
    Layer,
    inputs,
    trained,
    video_layer,
)


def _initial(layer: Layer, num_axes: int) -> Tensor:
    """The offsets at the start, [M, L, K, N]."""
    bias = layer.sampling_offsets.bias.detach()
    return bias.view(layer.num_heads, layer.num_levels, layer.num_points, num_axes)


def test_image_heads_look_in_compass_directions() -> None:
    layer = MSDeformAttn()
    offsets = _initial(layer, 2)
    compass = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    for level in range(4):
        for point in range(4):
            expected = compass * (point + 1.0)
            torch.testing.assert_close(offsets[:, level, point], expected, rtol=0, atol=1e-6)


def test_directions_of_other_numbers_of_heads() -> None:
    offsets = _initial(MSDeformAttn(30, 1, num_heads=3, num_points=2), 2)
    # At 0, 120 and 240 degrees, on the square ring of radius 1.
    expected = torch.tensor([[1, 0], [-math.tan(math.pi / 6), 1], [-math.tan(math.pi / 6), -1]])
    torch.testing.assert_close(offsets[:, 0, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(offsets[:, 0, 1], 2 * expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_points", "steps", "radii"),
    [
        (1, [0], [1]),
        (2, [0, 0], [1, 2]),
        (3, [-1, 0, 1], [1, 1, 1]),
        (4, [-1, 0, 1, -1], [1, 1, 1, 2]),
        (5, [-2, -1, 0, 1, 2], [1] * 5),
        (12, [-2, -1, 0, 1, 2] * 2 + [-2, -1], [1] * 5 + [2] * 5 + [3] * 2),
        (32, ([-2, -1, 0, 1, 2] * 7)[:32], [k // 5 + 1 for k in range(32)]),
    ],
    ids=lambda case: str(case) if isinstance(case, int) else "",
)
def test_video_heads_spread_over_frames(
    num_points: int, steps: list[int], radii: list[int]
) -> None:
    offsets = _initial(STDeformAttn(32, 2, 8, num_points), 3)
    compass = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    expected = torch.cat(
        [
            compass[:, None] * torch.tensor(radii)[:, None],
            torch.tensor(steps)[:, None].expand(8, -1, 1),
        ],
        -1,
    ).float()
    for level in range(2):
        torch.testing.assert_close(offsets[:, level], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", LAYERS)
def test_weights_are_uniform_and_offsets_fixed_at_the_start(axes: str) -> None:
    layer = LAYERS[axes][0]()
    for projection in (layer.sampling_offsets, layer.attention_weights):
        assert not projection.weight.any()
    assert not layer.attention_weights.bias.any()
    # So a query does not matter yet.
    query, points, value, shapes = inputs(axes)
    out = layer(query, points, value, shapes)
    assert torch.equal(out, layer(torch.zeros_like(query), points, value, shapes))


def test_projections_start_as_xavier_without_bias() -> None:
    layer = STDeformAttn()
    bound = math.sqrt(6 / (384 + 384))
    for projection in (layer.value_proj, layer.output_proj):
        assert projection.weight.abs().max() <= bound
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not projection.bias.any()


def test_reset_parameters_restores_the_start() -> None:
    layer = video_layer()
    start = _initial(layer, 3).clone()
    trained(layer).reset_parameters()
    assert torch.equal(_initial(layer, 3), start)
    assert not layer.attention_weights.weight.any()


def test_defaults_are_the_papers() -> None:
    video = STDeformAttn()
    assert (video.embed_dim, video.num_levels, video.num_heads, video.num_points) == (384, 1, 8, 32)
    image = MSDeformAttn()
    assert (image.embed_dim, image.num_levels, image.num_heads, image.num_points) == (256, 4, 8, 4)


@pytest.mark.parametrize("layer", [STDeformAttn, MSDeformAttn])
def test_sizes_by_position_mean_the_same_in_both_layers(layer: type[Layer]) -> None:
    named = layer(embed_dim=64, num_levels=3, num_heads=4, num_points=2)
    assert repr(layer(64, 3, 4, 2)) == repr(named)
