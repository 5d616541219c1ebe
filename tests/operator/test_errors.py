"""Every argument error: its type, and that it names the argument, the rule and the value."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
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

# What to change of a good call, by argument's name; what the error must say.
Cases = list[tuple[dict[str, Any], str]]

SHAPES = ((4, 6, 5), (2, 3, 3))  # of `draw`: B, Q, M, L, K, N, D = 2, 7, 2, 2, 3, 3, 16
VALUE_RULE = "value must have shape [B, S, M, D] with M and D >= 1, got"
TABLE_RULE = "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], got"
zeros = torch.zeros
positions = functools.partial(zeros, 2, 7, 2, 2, 3, 3)
scores = functools.partial(zeros, 2, 7, 2, 2, 3)
points = functools.partial(zeros, 2, 7, 2, 3)
LONG, DOUBLE, HALF = torch.int64, torch.float64, torch.float16

TYPE_ERRORS: Cases = [
    ({"value": [1.0]}, "value must be a Tensor, got list"),
    (
        {"value": zeros(2, 138, 2, 16, dtype=LONG)},
        "value must be one of float64, float32, float16, bfloat16, got torch.int64",
    ),
    ({"spatial_shapes": torch.tensor(SHAPES)}, f"{TABLE_RULE} a Tensor"),
    ({"spatial_shapes": (4, 6, 5)}, f"{TABLE_RULE} (4, 6, 5)"),
    ({"spatial_shapes": 138}, f"{TABLE_RULE} 138"),
    ({"spatial_shapes": "46"}, f"{TABLE_RULE} '46'"),
    (
        {"spatial_shapes": [(4, 6, 5), (2, 3, 3.0)]},
        "spatial_shapes must hold Python ints, got float in (2, 3, 3.0)",
    ),
    (
        {"spatial_shapes": [(4, 6, 5), (True, 6, 3)]},
        "spatial_shapes must hold Python ints, got bool in (True, 6, 3)",
    ),
]
VALUE_ERRORS: Cases = [
    ({"value": zeros(2, 138, 32)}, f"{VALUE_RULE} [2, 138, 32]"),
    ({"value": zeros(2, 138, 0, 16)}, f"{VALUE_RULE} [2, 138, 0, 16]"),
    ({"value": zeros(2, 138, 2, 0)}, f"{VALUE_RULE} [2, 138, 2, 0]"),
    (
        {"value": zeros(2, 137, 2, 16)},
        "value must have as many rows as spatial_shapes has cells, 138, got 137",
    ),
    ({"spatial_shapes": []}, "spatial_shapes must have at least one row, got none"),
    (
        {"spatial_shapes": [(4, 6, 5), (0, 3, 3)]},
        "spatial_shapes sizes must be at least 1, got (0, 3, 3)",
    ),
    ({"backend": "cuda"}, "backend must be one of auto, native, reference, got 'cuda'"),
]


def _type_errors(position: str, score: str, *others: str) -> Cases:
    """Errors of what goes with the value: positions, scores, reference points."""
    names = (position, score, *others)
    rule = "must be float32 or of value's dtype, torch.float32, got"
    makers = dict(zip(names, (positions, scores, points), strict=False))
    return [
        *TYPE_ERRORS,
        *(({name: None}, f"{name} must be a Tensor, got NoneType") for name in names),
        *(
            ({name: make(dtype=dtype)}, f"{name} {rule} {dtype}")
            for name, make in makers.items()
            for dtype in (DOUBLE, HALF)
        ),
    ]


def _value_errors(position: str, score: str, *others: str) -> Cases:
    makers = dict(zip((position, score, *others), (positions, scores, points), strict=False))
    axes = f"{position} must have shape [B, Q, M, L, K, N] with N = 2 (x, y) or 3 (x, y, t), got"
    match = f"{position} must have shape [2, 7, 2, 2, 3, 3] to match value and spatial_shapes, got"
    return [
        *VALUE_ERRORS,
        *(
            ({name: make(device="meta")}, f"{name} must be on value's device, cpu, got meta")
            for name, make in makers.items()
        ),
        (
            {"spatial_shapes": [(6, 23)]},
            f"spatial_shapes rows must be (T, H, W) to match the last axis of {position}, "
            "got (6, 23)",
        ),
        ({position: zeros(2, 7, 2, 6, 3)}, f"{axes} [2, 7, 2, 6, 3]"),
        ({position: zeros(2, 7, 2, 2, 3, 4)}, f"{axes} [2, 7, 2, 2, 3, 4]"),
        (
            {position: zeros(2, 7, 2, 2, 0, 3)},
            f"{position} must have K >= 1 points, got shape [2, 7, 2, 2, 0, 3]",
        ),
        # Of another batch, number of heads, number of levels.
        ({position: zeros(1, 7, 2, 2, 3, 3)}, f"{match} [1, 7, 2, 2, 3, 3]"),
        ({position: zeros(2, 7, 4, 2, 3, 3)}, f"{match} [2, 7, 4, 2, 3, 3]"),
        ({position: zeros(2, 7, 2, 1, 3, 3)}, f"{match} [2, 7, 2, 1, 3, 3]"),
        (
            {score: zeros(2, 7, 2, 6)},
            f"{score} must have shape [2, 7, 2, 2, 3] to match {position}, got [2, 7, 2, 6]",
        ),
        *(
            (
                {name: zeros(shape)},
                f"{name} must have shape [2, 7, 2, 3] (points) or [2, 7, 2, 6] (centre then "
                f"size), got {shape}",
            )
            for name in others
            for shape in ([2, 7, 3], [2, 7, 2, 4])
        ),
    ]


NAMES = {
    "locations": ("sampling_locations", "attention_weights"),
    "points": ("sampling_offsets", "attention_logits", "reference_points"),
}
ERRORS = [
    pytest.param(form, changes, error, message, id=f"{form}: {message}")
    for form, names in NAMES.items()
    for error, cases in ((TypeError, _type_errors(*names)), (ValueError, _value_errors(*names)))
    for changes, message in cases
]


def _call(form: str, changes: dict[str, Any]) -> Tensor:
    problem = draw(form)
    function: Callable[..., Tensor] = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )
    good = {name: getattr(problem, name) for name in ("value", "spatial_shapes", *NAMES[form])}
    return function(**{"backend": "reference", **good, **changes})


@pytest.mark.parametrize(("form", "changes", "error", "message"), ERRORS)
def test_argument_errors(
    form: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _call(form, changes)


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
