"""The layer under its original names: sizes, state dicts, ratio, copies, dtypes of points."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import stdeform
from stdeform.integrations.msda import MSDeformAttn
from tests.support.layers import by_hand, inputs, trained


def test_by_position_and_by_keyword() -> None:
    for layer in (
        MSDeformAttn(64, 3, 4, 2),
        MSDeformAttn(d_model=64, n_levels=3, n_heads=4, n_points=2),
    ):
        assert (layer.d_model, layer.n_levels, layer.n_heads, layer.n_points) == (64, 3, 4, 2)
        assert (layer.ratio, layer.im2col_step) == (1.0, 64)
    assert repr(layer).startswith(
        "MSDeformAttn(\n  d_model=64, n_levels=3, n_heads=4, n_points=2, ratio=1.0\n"
    )
    layer.im2col_step = 128
    default = MSDeformAttn()
    assert isinstance(default, stdeform.MSDeformAttn)
    assert (default.d_model, default.n_levels, default.n_heads, default.n_points) == (256, 4, 8, 4)


def test_a_state_dict_of_the_original_layer_loads() -> None:
    shapes = {
        "sampling_offsets.weight": (4 * 2 * 3 * 2, 32),
        "sampling_offsets.bias": (4 * 2 * 3 * 2,),
        "attention_weights.weight": (4 * 2 * 3, 32),
        "attention_weights.bias": (4 * 2 * 3,),
        "value_proj.weight": (32, 32),
        "value_proj.bias": (32,),
        "output_proj.weight": (32, 32),
        "output_proj.bias": (32,),
    }
    layer = MSDeformAttn(32, 2, 4, 3)
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == shapes
    state = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    layer.load_state_dict(state, strict=True)
    query, points, value, rows = inputs("image")
    out = layer(query, points, value, torch.tensor(rows), torch.tensor([0, 30]), None)
    torch.testing.assert_close(out, by_hand(layer, query, points, value, rows))


def test_a_seed_gives_the_projections_of_the_original_layer() -> None:
    torch.manual_seed(5)
    layer = MSDeformAttn(32, 2, 4, 3)
    torch.manual_seed(5)
    sizes = ((32, 48), (32, 24), (32, 32), (32, 32))
    value, output = [nn.Linear(*size) for size in sizes][2:]
    for projection, ours in ((value, layer.value_proj), (output, layer.output_proj)):
        nn.init.xavier_uniform_(projection.weight)
        assert torch.equal(ours.weight, projection.weight)


def test_reset_parameters_may_be_called_and_overridden() -> None:
    """Models call it after their own initialisation; subclasses have their own pattern."""
    torch.manual_seed(5)
    layer = MSDeformAttn(32, 2, 4, 3)
    start = copy.deepcopy(layer.state_dict())
    trained(layer)
    torch.manual_seed(5)
    for size in ((32, 48), (32, 24), (32, 32), (32, 32)):
        nn.Linear(*size)  # as many random numbers as the constructor draws before
    layer._reset_parameters()
    assert all(torch.equal(tensor, start[name]) for name, tensor in layer.state_dict().items())

    class Other(MSDeformAttn):
        def _reset_parameters(self) -> None:
            super()._reset_parameters()
            nn.init.constant_(self.sampling_offsets.bias, 7.0)

    assert (Other(32, 2, 4, 3).sampling_offsets.bias == 7).all()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0])
def test_ratio_of_vit_adapter(ratio: float) -> None:
    inner = int(32 * ratio)
    layer = trained(MSDeformAttn(32, 2, 4, 3, ratio=ratio)).double()
    assert layer.value_proj.weight.shape == (inner, 32)
    assert layer.output_proj.weight.shape == (32, inner)
    query, points, value, rows = inputs("image")
    args = query.double(), points.double(), value.double(), rows
    wide = stdeform.MSDeformAttn(32, 2, 4, 3).double()
    wide.load_state_dict(layer.state_dict() | _unit_projections())
    # Values are projected and results mapped back outside of a layer that does neither.
    projected = layer.value_proj(args[2]).unflatten(-1, (4, -1))
    parts = []
    for first in range(0, inner // 4, 8):
        part = projected[..., first : first + 8]
        padded = nn.functional.pad(part, (0, 8 - part.shape[-1])).flatten(2)
        parts.append(wide(args[0], args[1], padded, rows).unflatten(-1, (4, 8)))
    out = torch.cat(parts, -1)[..., : inner // 4].flatten(2)
    # Float64 sums of the same terms, grouped in another way.
    torch.testing.assert_close(layer(*args), layer.output_proj(out), rtol=1e-9, atol=1e-9)


def _unit_projections() -> dict[str, torch.Tensor]:
    return {
        f"{name}_proj.{part}": torch.eye(32) if part == "weight" else torch.zeros(32)
        for name in ("value", "output")
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"d_model": 30}, ValueError, "d_model must be a multiple of n_heads, 8, got 30"),
        ({"n_levels": 0}, ValueError, "n_levels must be at least 1, got 0"),
        ({"n_points": 4.0}, TypeError, "n_points must be an int, got float"),
        ({"ratio": 0.1}, ValueError, "int(d_model * ratio) must be a positive multiple of n_heads"),
        ({"ratio": 0.0}, ValueError, "a positive multiple of n_heads, 8, got 0 for ratio 0.0"),
        ({"ratio": -1.0}, ValueError, "a positive multiple of n_heads, 8, got -256 for ratio -1.0"),
    ],
    ids=str,
)
def test_constructor_errors(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        MSDeformAttn(**settings)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies(copied: Callable[[MSDeformAttn], MSDeformAttn]) -> None:
    layer = trained(MSDeformAttn(32, 2, 4, 3, 0.5))
    other = copied(layer)
    assert torch.equal(other(*inputs("image")), layer(*inputs("image")))
    assert repr(other) == repr(layer)
    assert (other.d_model, other.ratio, other.im2col_step) == (32, 0.5, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_points_of_16_bits_fit_a_layer_of_32(dtype: torch.dtype) -> None:
    layer = trained(MSDeformAttn(32, 2, 4, 3))
    query, points, value, rows = inputs("image", boxes=True)
    half = points.to(dtype)
    assert torch.equal(layer(query, half, value, rows), layer(query, half.float(), value, rows))
    with pytest.raises(TypeError, match="reference_points must be float32 or of the projected"):
        layer(query, points.double(), value, rows)
