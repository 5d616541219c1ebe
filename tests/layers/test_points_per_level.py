"""Layers whose points differ by level."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from stdeform import st_deform_attn_from_offsets
from tests.support.layers import LAYERS, inputs, trained

COUNTS = (2, 5)


def _layer(axes: str, num_points: Any) -> Any:
    return LAYERS[axes][0](num_points=num_points)


@pytest.mark.parametrize("axes", LAYERS)
def test_the_operator_reads_what_the_layer_predicts(axes: str) -> None:
    layer = trained(_layer(axes, COUNTS))
    query, points, value, shapes = inputs(axes)
    num_axes = len(shapes[0])
    expected = layer.output_proj(
        st_deform_attn_from_offsets(
            layer.value_proj(value).unflatten(-1, (layer.num_heads, -1)),
            shapes,
            points.expand(query.shape[0], -1, len(shapes), -1),
            layer.sampling_offsets(query).unflatten(-1, (layer.num_heads, 7, num_axes)),
            layer.attention_weights(query).unflatten(-1, (layer.num_heads, 7)),
            num_points=COUNTS,
        )
    )
    assert torch.equal(layer(query, points, value, shapes), expected)


@pytest.mark.parametrize("axes", LAYERS)
def test_as_many_on_each_level_is_the_same_layer(axes: str) -> None:
    one, other = trained(_layer(axes, 3)), trained(_layer(axes, [3, 3]))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(*inputs(axes)), other(*inputs(axes)))


@pytest.mark.parametrize("axes", LAYERS)
def test_each_level_starts_with_its_own_pattern(axes: str) -> None:
    layer = _layer(axes, COUNTS)
    num_axes = layer.sampling_offsets.out_features // layer.attention_weights.out_features
    found = layer.sampling_offsets.bias.unflatten(0, (layer.num_heads, 7, num_axes))
    for part, count in zip(found.split(COUNTS, 1), COUNTS, strict=True):
        alone = _layer(axes, count).sampling_offsets.bias
        of_one_level = alone.unflatten(0, (layer.num_heads, 2, count, num_axes))[:, 0]
        assert torch.equal(part, of_one_level)
    assert "num_points=(2, 5)" in repr(layer)


@pytest.mark.parametrize(
    ("num_points", "error"), [([3], ValueError), ([3, 0], ValueError), ([3, 1.0], TypeError)]
)
def test_errors(num_points: list[Any], error: type[Exception]) -> None:
    message = f"num_points must hold 2 ints of at least 1, one per level, got {num_points}"
    with pytest.raises(error, match=re.escape(message)):
        _layer("video", num_points)
