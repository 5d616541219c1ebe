"""What the native core refuses by itself: a recorded graph calls it without stdeform's checks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from stdeform import _ops
from tests.support.cases import draw

pytestmark = pytest.mark.usefixtures("needs_native")

# Which argument of the registered operator, by position, becomes what; what the error says.
CASES: list[tuple[dict[int, Any], str]] = [
    (
        {1: [4, 6, 5, 2, 3, 4]},
        "spatial_shapes must have as many cells as value has rows, 138, got 144",
    ),
    ({1: [4, 6, 5, 18]}, "spatial_shapes must have N sizes for each entry of num_points, 3, got 4"),
    ({1: []}, "spatial_shapes must have as many cells as value has rows, 138, got 0"),
    (
        {2: torch.zeros(2, 7, 1, 3)},
        "reference_points must have shape [2, 7, 2, 3], got [2, 7, 1, 3]",
    ),
    (
        {2: torch.zeros(2, 6, 2, 6)},
        "reference_points must have shape [2, 7, 2, 6], got [2, 6, 2, 6]",
    ),
    (
        {3: torch.zeros(2, 7, 1, 2, 3, 3)},
        "positions must have shape [2, 7, 2, 6, 3], got [2, 7, 1, 6",
    ),
    ({3: torch.zeros(2, 7, 2, 2, 3, 4)}, "positions must have 2 or 3 axes, got 4"),
    ({3: torch.zeros(2, 7, 2, 3)}, "positions must have 5 axes, got 4"),
    ({4: torch.zeros(2, 7, 2, 2, 2)}, "scores must have shape [2, 7, 2, 6], got [2, 7, 2, 4]"),
    ({4: torch.zeros(2, 7, 2, 2, 3).double()}, "scores must be float32 or have the dtype of value"),
    ({5: [2, 2]}, "num_points must add up to the points of positions, 6, got 4"),
    ({5: [6]}, "spatial_shapes must have N sizes for each entry of num_points, 3, got 6"),
    ({5: [6, 0]}, "num_points must hold numbers of at least 1, got 0"),
    # Numbers that would add up without the sign, or without the bits from 2^64 on.
    ({1: [4, 6, 10, -2, 17, 3]}, "spatial_shapes must hold numbers of at least 1, got -2"),
    ({1: [2**32, 2**32, 1, 2, 3, 23]}, f"138, got {2**63 - 1}"),
    (
        {1: [1, 1, 34] * 3 + [1, 1, 36], 5: [2**62] * 3 + [2**62 + 6]},
        f"num_points must add up to the points of positions, 6, got {2**63 - 1}",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[message for _, message in CASES])
def test_sizes_that_do_not_match(changes: dict[int, Any], message: str) -> None:
    value, shapes, *others = draw("points").from_offsets
    args: list[Any] = [value, [size for row in shapes for size in row], *others, []]
    for at, changed in changes.items():
        args[at] = changed
    with pytest.raises(ValueError, match=re.escape(message)):
        _ops.st_deform_attn(*args)
    grad_out = torch.zeros(2, 7, 32)
    with pytest.raises(ValueError, match=re.escape(message)):
        _ops.st_deform_attn_backward(grad_out, *args, [True, True, True, True])


@pytest.mark.parametrize("grad_out", [torch.zeros(2, 6, 32), torch.zeros(2, 7, 32).double()])
def test_a_gradient_that_does_not_match(grad_out: Tensor) -> None:
    value, shapes, *others = draw("points").from_offsets
    args = [value, [size for row in shapes for size in row], *others, [], [True] * 4]
    with pytest.raises(
        ValueError, match=r"grad_out must have (shape \[2, 7, 32\]|the dtype of value)"
    ):
        _ops.st_deform_attn_backward(grad_out, *args)
