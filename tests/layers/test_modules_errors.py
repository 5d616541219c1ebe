"""What the layers refuse, and how they say it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from stdeform import MSDeformAttn, STDeformAttn, _checks
from tests.support.layers import LAYERS, VIDEO, Layer, inputs


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"embed_dim": 30, "num_heads": 8},
            ValueError,
            "embed_dim must be a multiple of num_heads, 8, got 30",
        ),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_points": -1}, ValueError, "num_points must be at least 1, got -1"),
        ({"num_levels": 1.0}, TypeError, "num_levels must be an int, got float"),
        ({"num_levels": True}, TypeError, "num_levels must be an int, got bool"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of auto, native, reference, got 'cuda'",
        ),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
@pytest.mark.parametrize("layer", [STDeformAttn, MSDeformAttn])
def test_constructor_errors(
    layer: Callable[..., Layer], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        layer(**settings)


CALLS: dict[str, tuple[str, dict[int, Any], type[Exception], str]] = {
    # Which layer, which of its arguments become what, the error.
    "query no tensor": ("video", {0: None}, TypeError, "query must be a Tensor, got NoneType"),
    "query flat": (
        "video",
        {0: torch.zeros(7, 32)},
        ValueError,
        "query must have 3 axes, the last of embed_dim = 32 channels, got shape [7, 32]",
    ),
    "query too wide": (
        "video",
        {0: torch.zeros(2, 7, 33)},
        ValueError,
        "query must have 3 axes, the last of embed_dim = 32 channels, got shape [2, 7, 33]",
    ),
    "points no tensor": (
        "video",
        {1: [0.5] * 3},
        TypeError,
        "reference_points must be a Tensor, got list",
    ),
    **{
        f"points of shape {sizes}": (
            "video",
            {1: torch.zeros(sizes)},
            ValueError,
            "reference_points must have shape [2, 7, 2, 3] (points) or [..., 6] (centre then "
            f"size); the levels may be left out and the batch may be 1; got {[*sizes]}",
        )
        for sizes in ((2, 3), (3, 7, 2, 3), (2, 1, 2, 3), (2, 7, 1, 3), (2, 7, 2, 2), (2, 7, 4))
    },
    "value no tensor": ("video", {2: 0}, TypeError, "value must be a Tensor, got int"),
    "value too narrow": (
        "video",
        {2: torch.zeros(2, 72, 16)},
        ValueError,
        "value must have 3 axes, the last of embed_dim = 32 channels, got shape [2, 72, 16]",
    ),
    "value too short": (
        "video",
        {2: torch.zeros(2, 71, 32)},
        ValueError,
        "value must have shape [2, 72, 32] to match query and spatial_shapes, got [2, 71, 32]",
    ),
    "value of another batch": (
        "video",
        {2: torch.zeros(1, 72, 32)},
        ValueError,
        "value must have shape [2, 72, 32] to match query and spatial_shapes, got [1, 72, 32]",
    ),
    "image value too short": (
        "image",
        {2: torch.zeros(2, 38, 32)},
        ValueError,
        "input_flatten must have shape [2, 39, 32] to match query and input_spatial_shapes, "
        "got [2, 38, 32]",
    ),
    "shapes a tensor": (
        "video",
        {3: torch.tensor(VIDEO)},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints",
    ),
    "one level": (
        "video",
        {3: [(4, 3, 6)]},
        ValueError,
        "spatial_shapes must have num_levels = 2 rows, got 1",
    ),
    "shapes of an image": (
        "video",
        {3: [(4, 3), (2, 2)]},
        ValueError,
        "spatial_shapes rows must be (T, H, W), got (4, 3)",
    ),
    "no shapes": (
        "image",
        {3: None},
        TypeError,
        "input_spatial_shapes must be a sequence of rows of Python ints, such as [(H, W)], "
        "got None",
    ),
    "no levels": (
        "image",
        {3: []},
        ValueError,
        "input_spatial_shapes must have at least one row, got none",
    ),
    "three levels": (
        "image",
        {3: [(6, 5), (3, 3), (1, 1)]},
        ValueError,
        "input_spatial_shapes must have num_levels = 2 rows, got 3",
    ),
    "shapes of a video": (
        "image",
        {3: torch.tensor(VIDEO)},
        ValueError,
        "input_spatial_shapes rows must be (H, W), got (4, 3, 5)",
    ),
    "a size no int": (
        "image",
        {3: [(6, 5.0), (3, 3)]},
        TypeError,
        "input_spatial_shapes must hold Python ints, got float in (6, 5.0)",
    ),
    "a size of zero": (
        "image",
        {3: [(6, 5), (0, 3)]},
        ValueError,
        "input_spatial_shapes sizes must be at least 1, got (0, 3)",
    ),
    "shapes of floats": (
        "image",
        {3: torch.ones(2, 2)},
        TypeError,
        "input_spatial_shapes must hold integers, got torch.float32",
    ),
    "shapes flat": (
        "image",
        {3: torch.tensor([6, 5])},
        ValueError,
        "input_spatial_shapes must have shape [L, 2], got [2]",
    ),
    "wrong level starts": (
        "image",
        {4: torch.tensor([0, 31])},
        ValueError,
        "input_level_start_index must be [0, 30] to match input_spatial_shapes, got [0, 31]",
    ),
    "mask of floats": (
        "video",
        {4: torch.zeros(2, 72)},
        TypeError,
        "padding_mask must be a bool Tensor, True where there is padding, got torch.float32",
    ),
    "mask no tensor": (
        "image",
        {5: [True]},
        TypeError,
        "input_padding_mask must be a bool Tensor, True where there is padding, got list",
    ),
    "mask too short": (
        "image",
        {5: torch.zeros(2, 38, dtype=torch.bool)},
        ValueError,
        "input_padding_mask must have shape [2, 39] to match input_flatten, got [2, 38]",
    ),
    "points of another dtype": (
        "video",
        {1: torch.zeros(2, 7, 3, dtype=torch.float64)},
        TypeError,
        "reference_points must be float32 or of the projected value's dtype, torch.float32, got "
        "torch.float64",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_errors(case: str) -> None:
    axes, changes, error, message = CALLS[case]
    args: list[Any] = [*inputs(axes), None, None][: 5 if axes == "video" else 6]
    for position, changed in changes.items():
        args[position] = changed
    with pytest.raises(error, match=re.escape(message)) as caught:
        LAYERS[axes][0]()(*args)
    told = str(caught.value)
    assert "sampl" not in told  # the layer's user has given none
    if axes == "image":
        assert not re.search(r"\b(value|spatial_shapes|padding_mask)\b", told)


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
