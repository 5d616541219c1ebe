"""What the layers refuse, and how they say it."""

from __future__ import annotations

import functools
import re
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from stdeform import MSDeformAttn, STDeformAttn, _checks
from tests.support.layers import LAYERS, VIDEO, Layer, inputs


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"embed_dim": 30}, ValueError, "embed_dim must be a multiple of num_heads, 8, got 30"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_points": -1}, ValueError, "num_points must be at least 1, got -1"),
        ({"num_levels": 1.0}, TypeError, "num_levels must be an int, got float"),
        ({"num_levels": True}, TypeError, "num_levels must be an int, got bool"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, native, reference, got 'c"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
@pytest.mark.parametrize("layer", [STDeformAttn, MSDeformAttn])
def test_constructor_errors(
    layer: type[Layer], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        layer(**settings)


zeros = torch.zeros
on_meta = functools.partial(torch.zeros, device="meta")
CHANNELS = "must have 3 axes, the last of embed_dim = 32 channels, got shape"
POINTS = (
    "reference_points must have shape [2, 7, 2, 3] (points) or [..., 6] (centre then size); the "
    "batch and the levels may be 1, and the levels may be left out; got"
)
MASK = "must be a bool Tensor, True where there is padding, got"
TABLE = "spatial_shapes must be a sequence of rows of Python ints, such as"
VALUE = "value must have shape [2, 72, 32] to match query and spatial_shapes, got"

# Which layer; which of its arguments, by position, becomes what; what the error must say.
Cases = list[tuple[str, int, Any, str]]
TYPE_ERRORS: Cases = [
    ("video", 0, None, "query must be a Tensor, got NoneType"),
    ("video", 1, [0.5] * 3, "reference_points must be a Tensor, got list"),
    (
        "video",
        1,
        zeros(2, 7, 3).double(),
        "reference_points must be float32 or of the projected value's dtype, torch.float32, got ",
    ),
    ("video", 2, 0, "value must be a Tensor, got int"),
    ("video", 3, torch.tensor(VIDEO), f"{TABLE} [(T, H, W)], got a Tensor"),
    ("video", 4, zeros(2, 72), f"padding_mask {MASK} torch.float32"),
    ("image", 3, None, f"input_{TABLE} [(H, W)], got None"),
    ("image", 3, [(6, 5.0), (3, 3)], "input_spatial_shapes must hold Python ints, got float in "),
    ("image", 3, torch.ones(2, 2), "input_spatial_shapes must hold integers, got torch.float32"),
    ("image", 3, torch.ones(2, 2).bool(), "input_spatial_shapes must hold integers, got torch.b"),
    ("image", 3, torch.ones(2, 2, dtype=torch.int64, device="meta"), "numbers, got a tensor on m"),
    ("image", 5, [True], f"input_padding_mask {MASK} list"),
    ("video", 0, zeros(2, 7, 32).double(), "query must be of the layer's dtype, torch.float32, go"),
    (
        "image",
        2,
        zeros(2, 39, 32).half(),
        "input_flatten must be of the layer's dtype, torch.float",
    ),
]
VALUE_ERRORS: Cases = [
    ("video", 0, zeros(7, 32), f"query {CHANNELS} [7, 32]"),
    ("video", 0, zeros(2, 7, 33), f"query {CHANNELS} [2, 7, 33]"),
    *(
        ("video", 1, zeros(sizes), f"{POINTS} {[*sizes]}")
        for sizes in ((2, 3), (3, 7, 2, 3), (2, 1, 2, 3), (2, 7, 3, 3), (2, 7, 2, 2), (2, 7, 4))
    ),
    ("video", 2, zeros(2, 72, 16), f"value {CHANNELS} [2, 72, 16]"),
    ("video", 2, zeros(2, 71, 32), f"{VALUE} [2, 71, 32]"),
    ("video", 2, zeros(1, 72, 32), f"{VALUE} [1, 72, 32]"),
    ("video", 3, [(4, 3, 6)], "spatial_shapes must have num_levels = 2 rows, got 1"),
    ("video", 3, [(4, 3), (2, 2)], "spatial_shapes rows must be (T, H, W), got (4, 3)"),
    ("image", 2, zeros(2, 38, 32), "input_flatten must have shape [2, 39, 32] to match query and "),
    ("image", 3, [], "input_spatial_shapes must have at least one row, got none"),
    ("image", 3, torch.tensor(VIDEO), "input_spatial_shapes rows must be (H, W), got (4, 3, 5)"),
    ("image", 3, [(6, 5), (0, 3)], "input_spatial_shapes sizes must be at least 1, got (0, 3)"),
    ("image", 3, torch.tensor([6, 5]), "input_spatial_shapes must have shape [L, N], got [2]"),
    ("video", 0, on_meta(2, 7, 32), "query must be on the layer's device, cpu, got meta"),
    ("image", 2, on_meta(2, 39, 32), "input_flatten must be on the layer's device, cpu, got meta"),
    ("image", 5, on_meta(2, 39).bool(), "input_padding_mask must be on the layer's device, cpu"),
    ("image", 4, torch.tensor([0, 31]), "input_level_start_index must be [0, 30] to match input_"),
    (
        "image",
        5,
        zeros(2, 38).bool(),
        "input_padding_mask must have shape [2, 39] to match input_flatten, got [2, 38]",
    ),
]
ERRORS = [
    pytest.param(axes, at, changed, error, message, id=f"{axes}: {message}")
    for error, cases in ((TypeError, TYPE_ERRORS), (ValueError, VALUE_ERRORS))
    for axes, at, changed, message in cases
]


@pytest.mark.parametrize(("axes", "at", "changed", "error", "message"), ERRORS)
def test_call_errors(
    axes: str, at: int, changed: Any, error: type[Exception], message: str
) -> None:
    args: list[Any] = [*inputs(axes), None, None][: 5 if axes == "video" else 6]
    args[at] = changed
    with pytest.raises(error, match=re.escape(message)) as caught:
        LAYERS[axes][0]()(*args)
    printed = str(caught.value)
    assert "sampl" not in printed  # the layer's user has given none
    if axes == "image":
        assert not re.search(r"\b(value|spatial_shapes|padding_mask)\b", printed)


def test_an_error_of_another_cause_is_left_as_it_is() -> None:
    layer = LAYERS["video"][0]()

    def fail(*_: Any) -> None:
        raise RuntimeError("a hook's own")

    layer.value_proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="a hook's own"):
        layer(*inputs("video"))


@pytest.mark.parametrize("axes", LAYERS)
def test_the_table_is_checked_once(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Mock(wraps=_checks.check_spatial_shapes)
    monkeypatch.setattr(_checks, "check_spatial_shapes", check)
    LAYERS[axes][0]()(*inputs(axes))
    check.assert_called_once()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_layer_in_a_dtype_that_the_operator_lacks() -> None:
    layer = LAYERS["video"][0]().to(torch.complex64)
    query, points, value, shapes = inputs("video")
    message = "the projected value must be one of float64, float32, float16, bfloat16, got torch.c"
    with pytest.raises(TypeError, match=message):
        layer(query.to(torch.complex64), points, value.to(torch.complex64), shapes)


def test_a_layer_of_mixed_dtypes() -> None:
    layer = LAYERS["video"][0]()
    layer.attention_weights.double()
    layer.attention_weights.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    message = "attention_weights must be float32 or of the projected value's dtype, torch.float32"
    with pytest.raises(TypeError, match=message):
        layer(*inputs("video"))
