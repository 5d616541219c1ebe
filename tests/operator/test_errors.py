"""Every argument error: its type, and that it names the argument, the rule and the value."""

from __future__ import annotations

import collections
import dataclasses
import enum
import re
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import stdeform
from stdeform import _checks, _native, functional
from stdeform.testing import Problem
from tests.support.cases import draw

# What to change of a good call, by argument's name; the error's type; what it must say.
Case = tuple[dict[str, Any], type[Exception], str]

SHAPES = ((4, 6, 5), (2, 3, 3))  # of `draw`: B, Q, M, L, K, N, D = 2, 7, 2, 2, 3, 3, 16

EITHER_FORM: dict[str, Case] = {
    "value no tensor": ({"value": [1.0]}, TypeError, "value must be a Tensor, got list"),
    "value of 3 axes": (
        {"value": torch.zeros(2, 138, 32)},
        ValueError,
        "value must have shape [B, S, M, D] with M and D >= 1, got [2, 138, 32]",
    ),
    "value without heads": (
        {"value": torch.zeros(2, 138, 0, 16)},
        ValueError,
        "value must have shape [B, S, M, D] with M and D >= 1, got [2, 138, 0, 16]",
    ),
    "value without channels": (
        {"value": torch.zeros(2, 138, 2, 0)},
        ValueError,
        "value must have shape [B, S, M, D] with M and D >= 1, got [2, 138, 2, 0]",
    ),
    "value of integers": (
        {"value": torch.zeros(2, 138, 2, 16, dtype=torch.int64)},
        TypeError,
        "value must be one of float64, float32, float16, bfloat16, got torch.int64",
    ),
    "value too short": (
        {"value": torch.zeros(2, 137, 2, 16)},
        ValueError,
        "value must have as many rows as spatial_shapes has cells, 138, got 137",
    ),
    "shapes a tensor": (
        {"spatial_shapes": torch.tensor(SHAPES)},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], "
        "got a Tensor",
    ),
    "shapes flat": (
        {"spatial_shapes": (4, 6, 5)},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], "
        "got (4, 6, 5)",
    ),
    "shapes no sequence": (
        {"spatial_shapes": 138},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], got 138",
    ),
    "shapes text": (
        {"spatial_shapes": "46"},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], got '46'",
    ),
    "shapes empty": (
        {"spatial_shapes": []},
        ValueError,
        "spatial_shapes must have at least one row, got none",
    ),
    "a size no int": (
        {"spatial_shapes": [(4, 6, 5), (2, 3, 3.0)]},
        TypeError,
        "spatial_shapes must hold Python ints, got float in (2, 3, 3.0)",
    ),
    "a size a bool": (
        {"spatial_shapes": [(4, 6, 5), (True, 6, 3)]},
        TypeError,
        "spatial_shapes must hold Python ints, got bool in (True, 6, 3)",
    ),
    "a size of zero": (
        {"spatial_shapes": [(4, 6, 5), (0, 3, 3)]},
        ValueError,
        "spatial_shapes sizes must be at least 1, got (0, 3, 3)",
    ),
    "unknown backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of auto, native, reference, got 'cuda'",
    ),
}


def _samples(name: str) -> dict[str, Case]:
    """Errors of `sampling_locations` or `sampling_offsets`."""
    return {
        f"{name} no tensor": ({name: None}, TypeError, f"{name} must be a Tensor, got NoneType"),
        f"{name} of 5 axes": (
            {name: torch.zeros(2, 7, 2, 6, 3)},
            ValueError,
            f"{name} must have shape [B, Q, M, L, K, N] with N = 2 (x, y) or 3 (x, y, t), "
            "got [2, 7, 2, 6, 3]",
        ),
        f"{name} of 4 coordinates": (
            {name: torch.zeros(2, 7, 2, 2, 3, 4)},
            ValueError,
            f"{name} must have shape [B, Q, M, L, K, N] with N = 2 (x, y) or 3 (x, y, t), "
            "got [2, 7, 2, 2, 3, 4]",
        ),
        f"shapes of an image beside {name}": (
            {"spatial_shapes": [(6, 23)]},
            ValueError,
            f"spatial_shapes rows must be (T, H, W) to match the last axis of {name}, got (6, 23)",
        ),
        f"{name} without points": (
            {name: torch.zeros(2, 7, 2, 2, 0, 3)},
            ValueError,
            f"{name} must have K >= 1 points, got shape [2, 7, 2, 2, 0, 3]",
        ),
        **{
            f"{name} of another {what}": (
                {name: torch.zeros(shape)},
                ValueError,
                f"{name} must have shape [2, {shape[1]}, 2, 2, 3, 3] to match value and "
                f"spatial_shapes, got {shape}",
            )
            for what, shape in {
                "batch": [1, 7, 2, 2, 3, 3],
                "number of heads": [2, 7, 4, 2, 3, 3],
                "number of levels": [2, 7, 2, 1, 3, 3],
            }.items()
        },
        f"{name} of another dtype": (
            {name: torch.zeros(2, 7, 2, 2, 3, 3, dtype=torch.float64)},
            TypeError,
            f"{name} must be float32 or of value's dtype, torch.float32, got torch.float64",
        ),
        f"{name} on another device": (
            {name: torch.zeros(2, 7, 2, 2, 3, 3, device="meta")},
            ValueError,
            f"{name} must be on value's device, cpu, got meta",
        ),
    }


def _scores(name: str, samples: str) -> dict[str, Case]:
    """Errors of `attention_weights` or `attention_logits`."""
    return {
        f"{name} no tensor": ({name: 1.0}, TypeError, f"{name} must be a Tensor, got float"),
        f"{name} flat": (
            {name: torch.zeros(2, 7, 2, 6)},
            ValueError,
            f"{name} must have shape [2, 7, 2, 2, 3] to match {samples}, got [2, 7, 2, 6]",
        ),
        f"{name} of another dtype": (
            {name: torch.zeros(2, 7, 2, 2, 3, dtype=torch.float16)},
            TypeError,
            f"{name} must be float32 or of value's dtype, torch.float32, got torch.float16",
        ),
        f"{name} on another device": (
            {name: torch.zeros(2, 7, 2, 2, 3, device="meta")},
            ValueError,
            f"{name} must be on value's device, cpu, got meta",
        ),
    }


LOCATIONS: dict[str, Case] = {
    **EITHER_FORM,
    **_samples("sampling_locations"),
    **_scores("attention_weights", "sampling_locations"),
}
OFFSETS: dict[str, Case] = {
    **EITHER_FORM,
    **_samples("sampling_offsets"),
    **_scores("attention_logits", "sampling_offsets"),
    "points no tensor": (
        {"reference_points": (0.5, 0.5, 0.5)},
        TypeError,
        "reference_points must be a Tensor, got tuple",
    ),
    "points without levels": (
        {"reference_points": torch.zeros(2, 7, 3)},
        ValueError,
        "reference_points must have shape [2, 7, 2, 3] (points) or [2, 7, 2, 6] (centre then "
        "size), got [2, 7, 3]",
    ),
    "points of 4 coordinates": (
        {"reference_points": torch.zeros(2, 7, 2, 4)},
        ValueError,
        "reference_points must have shape [2, 7, 2, 3] (points) or [2, 7, 2, 6] (centre then "
        "size), got [2, 7, 2, 4]",
    ),
    "points of another dtype": (
        {"reference_points": torch.zeros(2, 7, 2, 3, dtype=torch.bfloat16)},
        TypeError,
        "reference_points must be float32 or of value's dtype, torch.float32, got torch.bfloat16",
    ),
    "points on another device": (
        {"reference_points": torch.zeros(2, 7, 2, 3, device="meta")},
        ValueError,
        "reference_points must be on value's device, cpu, got meta",
    ),
}


def _call(form: str, changes: dict[str, Any]) -> Tensor:
    problem = draw(form)
    fields = ["value", "spatial_shapes"]
    if form == "locations":
        fields += ["sampling_locations", "attention_weights"]
        function: Callable[..., Tensor] = stdeform.st_deform_attn
    else:
        fields += ["reference_points", "sampling_offsets", "attention_logits"]
        function = stdeform.st_deform_attn_from_offsets
    settings = {"backend": "reference", **{name: getattr(problem, name) for name in fields}}
    return function(**{**settings, **changes})


@pytest.mark.parametrize("case", LOCATIONS)
def test_st_deform_attn(case: str) -> None:
    changes, error, message = LOCATIONS[case]
    with pytest.raises(error, match=re.escape(message)):
        _call("locations", changes)


@pytest.mark.parametrize("case", OFFSETS)
def test_st_deform_attn_from_offsets(case: str) -> None:
    changes, error, message = OFFSETS[case]
    with pytest.raises(error, match=re.escape(message)):
        _call("points", changes)


@pytest.mark.parametrize("form", ["locations", "points"])
def test_the_unchanged_call_is_good(form: str) -> None:
    assert _call(form, {}).shape == (2, 7, 32)


def test_a_table_may_be_any_sequence_and_may_change_between_calls() -> None:
    class Size(enum.IntEnum):
        FRAMES = 4

    expected = _call("points", {})
    table = [collections.UserList(row) for row in SHAPES]
    for good in (list(SHAPES), [list(row) for row in SHAPES], collections.UserList(table)):
        assert torch.equal(_call("points", {"spatial_shapes": good}), expected)
    named = [(Size.FRAMES, 6, 5), torch.Size((2, 3, 3))]
    assert torch.equal(_call("points", {"spatial_shapes": named}), expected)
    table[0][0] = True
    with pytest.raises(TypeError, match="must hold Python ints, got bool"):
        _call("points", {"spatial_shapes": table})


@pytest.mark.parametrize("form", ["locations", "points"])
def test_the_table_is_checked_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Mock(wraps=_checks.check_spatial_shapes)
    monkeypatch.setattr(_checks, "check_spatial_shapes", check)
    _call(form, {})
    check.assert_called_once()


def test_the_same_text_compiled() -> None:
    problem = draw("locations")
    short = dataclasses.replace(problem, value=problem.value[:, 1:])
    compiled = torch.compile(stdeform.st_deform_attn, backend="eager")
    with pytest.raises(ValueError, match="value must have as many rows as spatial_shapes has"):
        compiled(*short.attention)


# -- backends that are not there ---------------------------------------------------------------


@pytest.fixture
def no_core(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """As if the package had been installed without a compiler."""
    monkeypatch.setattr(_native, "_C", None)
    monkeypatch.setattr(_native, "_why_missing", "the reason")
    monkeypatch.setattr(functional, "_warned", set())
    return draw("points")


def test_native_without_a_core_is_an_error(no_core: Problem) -> None:
    with pytest.raises(RuntimeError, match="no native kernel for cpu tensors: the reason"):
        stdeform.st_deform_attn_from_offsets(*no_core.from_offsets, backend="native")


def test_auto_without_a_core_warns_once_and_takes_the_reference(no_core: Problem) -> None:
    args = no_core.from_offsets
    expected = stdeform.st_deform_attn_from_offsets(*args, backend="reference")
    with pytest.warns(RuntimeWarning, match="slow reference: the reason") as caught:
        out = stdeform.st_deform_attn_from_offsets(*args)
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(out, expected)
    again = stdeform.st_deform_attn_from_offsets(*args)  # a warning would be an error
    assert torch.equal(again, expected)


def test_the_kernel_refuses_more_cells_than_it_can_count(native: str) -> None:
    shape = (2048, 1024, 1024)
    value = torch.ones(1, 1, 1, 1).expand(1, 2**31, 1, 1)
    sample = torch.full((1, 1, 1, 1, 1, 3), 0.5), torch.ones(1, 1, 1, 1, 1)
    limit = "fewer than 2^31 vectors of four channels per batch element and head"
    message = f"value must have {limit}, got"
    with pytest.raises(ValueError, match=re.escape(message)):
        stdeform.st_deform_attn(value, [shape], *sample, backend="native")
    out = stdeform.st_deform_attn(value, [shape], *sample, backend="reference")
    assert out.item() == 1


def test_auto_never_swallows_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(functional._dispatch, "attend", broken)
    monkeypatch.setattr(_native, "missing", lambda device_type: None)
    with pytest.raises(RuntimeError, match="out of order"):
        stdeform.st_deform_attn(*draw("locations").attention)
