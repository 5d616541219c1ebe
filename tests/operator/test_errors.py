"""Every argument error: its type, and that it names the argument, the rule and the value."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import stdeform
from stdeform import _checks, _native, functional
from stdeform.testing import Problem
from tests.support.cases import draw, names

SHAPES = ((4, 6, 5), (2, 3, 3))  # of `draw`: B, Q, M, L, K, N, D = 2, 7, 2, 2, 3, 3, 16
VALUE_SHAPE = "value must have shape [B, S, M, D] with M and D >= 1, got"
TABLE = "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)], got"
AXES = (
    "sampling_offsets must have shape [B, Q, M, L, K, N], or [B, Q, M, P, N] with num_points, with "
    "N = 1 (t), 2 (x, y) or 3 (x, y, t), got"
)
POINTS = "num_points must hold 2 ints of at least 1, one per level, got"
MATCH = "sampling_offsets must have shape [2, 7, 2, 2, 3, 3] to match value and spatial_shapes, got"
REFERENCE = "reference_points must have shape [2, 7, 2, 3] (points) or [2, 7, 2, 6] (centre then"
DTYPE = "must be float32 or of value's dtype, torch.float32, got"
DEVICE = "must be on value's device, cpu, got meta"
zeros = torch.zeros
points = functools.partial(zeros, 2, 7, 2, 3)
offsets = functools.partial(zeros, 2, 7, 2, 2, 3, 3)
logits = functools.partial(zeros, 2, 7, 2, 2, 3)

# What to change of a good call with offsets, by argument's name; what the error must say.
Cases = list[tuple[dict[str, Any], str]]
TYPE_ERRORS: Cases = [
    ({"value": [1.0]}, "value must be a Tensor, got list"),
    (
        {"value": zeros(2, 138, 2, 16, dtype=torch.int64)},
        "value must be one of float64, float32, float16, bfloat16, got torch.int64",
    ),
    ({"spatial_shapes": torch.tensor(SHAPES)}, f"{TABLE} a Tensor"),
    ({"spatial_shapes": (4, 6, 5)}, f"{TABLE} (4, 6, 5)"),
    ({"spatial_shapes": 138}, f"{TABLE} 138"),
    ({"spatial_shapes": "46"}, f"{TABLE} '46'"),
    (
        {"spatial_shapes": [(4, 6, 5), (2, 3, 3.0)]},
        "spatial_shapes must hold Python ints, got float in (2, 3, 3.0)",
    ),
    (
        {"spatial_shapes": [(4, 6, 5), (True, 6, 3)]},
        "spatial_shapes must hold Python ints, got bool in (True, 6, 3)",
    ),
    ({"reference_points": None}, "reference_points must be a Tensor, got NoneType"),
    ({"sampling_offsets": None}, "sampling_offsets must be a Tensor, got NoneType"),
    ({"attention_logits": None}, "attention_logits must be a Tensor, got NoneType"),
    *(
        ({"num_points": counts, "sampling_offsets": zeros(2, 7, 2, 6, 3)}, f"{POINTS} {counts!r}")
        for counts in (6, [3, 3.0], [True, 5])
    ),
    ({"reference_points": points().double()}, f"reference_points {DTYPE} torch.float64"),
    ({"sampling_offsets": offsets().double()}, f"sampling_offsets {DTYPE} torch.float64"),
    ({"attention_logits": logits().half()}, f"attention_logits {DTYPE} torch.float16"),
]
VALUE_ERRORS: Cases = [
    ({"backend": "cuda"}, "backend must be one of auto, native, reference, got 'cuda'"),
    ({"value": zeros(2, 138, 32)}, f"{VALUE_SHAPE} [2, 138, 32]"),
    ({"value": zeros(2, 138, 0, 16)}, f"{VALUE_SHAPE} [2, 138, 0, 16]"),
    ({"value": zeros(2, 138, 2, 0)}, f"{VALUE_SHAPE} [2, 138, 2, 0]"),
    (
        {"value": zeros(2, 137, 2, 16)},
        "value must have as many rows as spatial_shapes has cells, 138, got 137",
    ),
    ({"spatial_shapes": []}, "spatial_shapes must have at least one row, got none"),
    (
        {"spatial_shapes": [(4, 6, 5), (0, 3, 3)]},
        "spatial_shapes sizes must be at least 1, got (0, 3, 3)",
    ),
    (
        {"spatial_shapes": [(6, 23)]},
        "spatial_shapes rows must be (T, H, W) to match the last axis of sampling_offsets, got (6",
    ),
    *(
        ({"num_points": counts, "sampling_offsets": zeros(2, 7, 2, 6, 3)}, f"{POINTS} {counts}")
        for counts in ([6, 0], [6], [])
    ),
    (
        {"num_points": [3, 4], "sampling_offsets": zeros(2, 7, 2, 6, 3)},
        "sampling_offsets must have shape [2, 7, 2, 7, 3] to match value and spatial_shapes, got",
    ),
    ({"num_points": [3, 3], "sampling_offsets": offsets()}, f"{AXES} [2, 7, 2, 2, 3, 3]"),
    ({"reference_points": points(device="meta")}, f"reference_points {DEVICE}"),
    ({"sampling_offsets": offsets(device="meta")}, f"sampling_offsets {DEVICE}"),
    ({"attention_logits": logits(device="meta")}, f"attention_logits {DEVICE}"),
    ({"sampling_offsets": zeros(2, 7, 2, 6, 3)}, f"{AXES} [2, 7, 2, 6, 3]"),
    ({"sampling_offsets": zeros(2, 7, 2, 2, 3, 4)}, f"{AXES} [2, 7, 2, 2, 3, 4]"),
    (
        {"sampling_offsets": zeros(2, 7, 2, 2, 0, 3)},
        "sampling_offsets must have K >= 1 points, got shape [2, 7, 2, 2, 0, 3]",
    ),
    # Of another batch, number of heads, number of levels.
    ({"sampling_offsets": zeros(1, 7, 2, 2, 3, 3)}, f"{MATCH} [1, 7, 2, 2, 3, 3]"),
    ({"sampling_offsets": zeros(2, 7, 4, 2, 3, 3)}, f"{MATCH} [2, 7, 4, 2, 3, 3]"),
    ({"sampling_offsets": zeros(2, 7, 2, 1, 3, 3)}, f"{MATCH} [2, 7, 2, 1, 3, 3]"),
    (
        {"attention_logits": zeros(2, 7, 2, 6)},
        "attention_logits must have shape [2, 7, 2, 2, 3] to match sampling_offsets, got [2, 7, 2",
    ),
    ({"reference_points": zeros(2, 7, 3)}, f"{REFERENCE} size), got [2, 7, 3]"),
    ({"reference_points": zeros(2, 7, 2, 4)}, f"{REFERENCE} size), got [2, 7, 2, 4]"),
]

# The names in a call with locations.
RENAMED = {"sampling_offsets": "sampling_locations", "attention_logits": "attention_weights"}


def _error_cases() -> Iterator[Any]:
    for error, cases in ((TypeError, TYPE_ERRORS), (ValueError, VALUE_ERRORS)):
        for changes, message in cases:
            yield pytest.param("points", changes, error, message, id=message)
            if "reference_points" not in changes:
                renamed = {RENAMED.get(name, name): changed for name, changed in changes.items()}
                for name, other in RENAMED.items():
                    message = message.replace(name, other)
                yield pytest.param("locations", renamed, error, message, id=message)


def _call(form: str, changes: dict[str, Any]) -> Tensor:
    function: Callable[..., Tensor] = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )
    problem = draw(form)
    good = {name: getattr(problem, name) for name in ("spatial_shapes", *names(form))}
    return function(**{"backend": "reference", **good, **changes})


@pytest.mark.parametrize(("form", "changes", "error", "message"), list(_error_cases()))
def test_argument_errors(
    form: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _call(form, changes)


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
    assert _call(form, {}).shape == (2, 7, 32)
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
