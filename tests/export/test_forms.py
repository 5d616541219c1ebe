"""Both forms as PyTorch computes them: the operator's definition, borders and dtypes included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stdeform
from stdeform import export, reference
from stdeform.export import FORMS
from stdeform.testing import make_problem


def _sizes(shapes: Any) -> list[int]:
    return [size for shape in shapes for size in shape]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [((4, 3), (1, 6)), ((2, 4, 3), (1, 1, 5))])
def test_samples_at_borders_and_without_a_place(form: str, shapes: Any) -> None:
    problem = make_problem(shapes, num_queries=200, num_points=2)
    # Each axis of each sample takes one of these: cell centres, edges of a level, just off them,
    # and what is no place.
    places = [0.0, 0.125, 0.5, 1.0, -0.125, 1.125, -1e-7, 1.0 + 1e-6, 7.0, 1e30, -1e38]
    special = torch.tensor([*places, float("nan"), float("inf"), -float("inf")])
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(special), problem.sampling_locations.shape, generator=generator)
    locations = special[chosen]
    args = (problem.value, _sizes(shapes), None, locations, problem.attention_weights, ())
    with stdeform.export_form(form):
        out = export.attend(*args)
    torch.testing.assert_close(out, reference.attend(*args), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("boxes", [False, True])
def test_references_and_offsets_without_a_place(form: str, boxes: bool) -> None:
    shapes = ((4, 3), (2, 6))
    problem = make_problem(shapes, num_queries=60, num_points=(1, 3), boxes=boxes)
    points, offsets = problem.reference_points.clone(), problem.sampling_offsets.clone()
    points[:, ::7, 0, 0] = float("inf")
    points[:, 3::7, 1, -1] = float("nan")
    offsets[:, ::5, :, ::2] = -float("inf")
    offsets[:, 1::5, :, 1::2] = 3e38
    args = (problem.value, _sizes(shapes), points, offsets, problem.attention_logits, (1, 3))
    with stdeform.export_form(form):
        out = export.attend(*args)
    torch.testing.assert_close(out, reference.attend(*args), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [((4, 3), (5, 6)), ((2, 4, 3), (3, 2, 5))])
@pytest.mark.parametrize(
    ("dtype", "rounding", "small"),
    [(torch.float64, 1e-13, 1e-14), (torch.float16, 2**-10, 5e-6), (torch.bfloat16, 2**-7, 5e-6)],
)
def test_dtypes(form: str, shapes: Any, dtype: torch.dtype, rounding: float, small: float) -> None:
    side = torch.float64 if dtype == torch.float64 else torch.float32
    problem = make_problem(shapes, dtype=dtype, side_dtype=side)
    value, _, points, offsets, logits = problem.from_offsets
    args = (value, _sizes(shapes), points, offsets, logits, ())
    with stdeform.export_form(form):
        out = export.attend(*args)
    # One rounding to the value's dtype each, of float32 results that differ by GridSample's
    # coordinates: fractions of a level, rounded.
    torch.testing.assert_close(out, reference.attend(*args), rtol=rounding, atol=small)


@pytest.mark.parametrize("infinite", [float("inf"), float("nan")])
def test_a_cell_that_is_not_read_does_not_show(infinite: float) -> None:
    value = torch.ones(1, 4 * 5, 1, 1)
    value[:, [0, 7, -1]] = infinite
    x = torch.tensor([-0.15, 0.3, 0.5, 1.15, 9.0])  # all but the third in no infinite cell
    locations = torch.stack([x, torch.full_like(x, 0.125)], -1).view(1, -1, 1, 1, 1, 2)
    args = (value, [4, 5], None, locations, torch.ones(1, 5, 1, 1, 1), ())
    with stdeform.export_form("gather"):
        out = export.attend(*args)
    torch.testing.assert_close(out, reference.attend(*args), equal_nan=True)


def test_more_cells_than_float32_counts() -> None:
    side = 4100  # 16.8 million cells: 2^24 and some, of one head
    value = torch.zeros(1, side * side, 1, 1)
    value[0, -7:, 0, 0] = torch.arange(1.0, 8.0)
    x = (torch.arange(side - 7, side) + 0.5) / side
    last = torch.full_like(x, 1 - 0.5 / side)
    locations = torch.stack([x, last], -1).view(1, 7, 1, 1, 1, 2)
    args = (value, [side, side], None, locations, torch.ones(1, 7, 1, 1, 1), ())
    with stdeform.export_form("gather"):
        out = export.attend(*args).flatten()
    # A location is rounded to 2^-24 of 4,100 cells, and neighbouring values differ by 1.
    torch.testing.assert_close(out, torch.arange(1.0, 8.0), rtol=0, atol=1e-3)
