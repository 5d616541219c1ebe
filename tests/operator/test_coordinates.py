"""Borders, coordinates that are no numbers, cells that are not read, kinks; by every backend."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from stdeform.testing import Problem, assert_close
from tests.support.cases import (
    DTYPES,
    FORMS,
    assert_results_close,
    draw,
    forward,
    operator,
    oracle_forward,
    oracle_gradients,
    oracle_results,
    results,
)

NAN, INF = math.nan, math.inf


def _read(backend: str, value: Tensor, shape: tuple[int, ...], *cells: tuple[float, ...]) -> Tensor:
    """Reads one head's value [S, D] at pixel coordinates (x, y[, t]), weight 1 each: [Q, D]."""
    sizes = torch.tensor(shape[::-1], dtype=value.dtype)
    locations = (torch.tensor(cells, dtype=value.dtype) + 0.5) / sizes
    return operator("locations", backend)(
        value[None, :, None],
        [shape],
        locations[None, :, None, None, None],
        value.new_ones(1, len(cells), 1, 1, 1),
    )[0]


# -- borders -----------------------------------------------------------------------------------

# In cells along an axis of 4, and the part of each cell's value that is read there.
READ: dict[float, dict[int, float]] = {
    -1.5: {},
    -1.0: {},
    -0.75: {0: 0.25},
    -0.5: {0: 0.5},
    0.0: {0: 1.0},
    0.25: {0: 0.75, 1: 0.25},
    2.0: {2: 1.0},
    3.0: {3: 1.0},
    3.25: {3: 0.75},
    3.5: {3: 0.5},
    **{cell: {} for cell in (4.0, 4.5, 1e4, -1e4, 1e30, -1e30, INF, -INF, NAN)},
}


@pytest.mark.parametrize(
    ("num_axes", "axis"),
    [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)],
    ids=["image-x", "image-y", "video-x", "video-y", "video-t"],
)
def test_borders(backend: str, num_axes: int, axis: int) -> None:
    value = torch.randn(4**num_axes, 16)
    before = sum(4**other for other in range(num_axes) if other != axis)
    line = value[before + 4**axis * torch.arange(4)]  # along the axis, cell 1 of the others
    at = [tuple(cell if other == axis else 1.0 for other in range(num_axes)) for cell in READ]
    rows = _read(backend, value, (4,) * num_axes, *at)
    for row, (cell, parts) in zip(rows, READ.items(), strict=True):
        expected = sum((part * line[i] for i, part in parts.items()), torch.zeros(16))
        assert torch.equal(row, expected), cell


# -- coordinates that are no numbers -----------------------------------------------------------

SAMPLE = 0, 1, 1, 0, 2


def _with_sample_at(problem: Problem, y: float) -> Problem:
    locations, offsets = problem.sampling_locations.clone(), problem.sampling_offsets.clone()
    locations[SAMPLE][1] = y
    offsets[SAMPLE][1] = y
    return dataclasses.replace(problem, sampling_locations=locations, sampling_offsets=offsets)


@functools.cache
def _with_sample_outside(form: str, dtype: str) -> tuple[Problem, list[Tensor]]:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = _with_sample_at(draw(form, dtype=value_dtype, side_dtype=side_dtype), 1e6)
    return problem, oracle_results(problem, form)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e6, 1e38])
@pytest.mark.parametrize("form", FORMS)
def test_a_coordinate_that_is_no_number_is_outside(backend: str, form: str, bad: float) -> None:
    """It reads nothing, gets no gradient, and the other points of the head keep their weights."""
    for dtype in ("f32", "bf16-f32", "bf16"):
        problem, expected = _with_sample_outside(form, dtype)
        found = results(_with_sample_at(problem, bad), form, backend)
        assert_results_close(found, expected, form)
        position = found[-2]
        assert (position[SAMPLE] == 0).all()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("form", ["points", "boxes"])
def test_a_reference_that_is_no_number_reads_nothing(backend: str, form: str, bad: float) -> None:
    problem = draw(form)
    for column in range(problem.reference_points.shape[-1]):
        problem.reference_points[1, column, 0, column] = bad  # each in a query of its own
    expected = oracle_forward(problem, form)
    assert torch.isfinite(expected).all()
    assert_close(forward(problem, form, backend), expected, "forward")


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("shape", [(3, 3, 4), (4, 5)], ids=["video", "image"])
def test_a_sample_outside_still_passes_on_what_is_no_number(
    backend: str, shape: tuple[int, ...], bad: float
) -> None:
    """Its weight times zero, and the gradient of the result times zero, are NaN."""
    if backend in ("emulated", "cuda"):
        pytest.skip("the CUDA kernels leave a sample out that reads nothing, whatever its weight")
    sampled = operator("locations", backend)
    value = torch.randn(1, math.prod(shape), 1, 16)
    locations = torch.full((1, 2, 1, 1, 3, len(shape)), 0.5)
    locations[0, 1, 0, 0, 2] = 9.0
    weights = torch.ones(1, 2, 1, 1, 3)
    poisoned = weights.clone()
    poisoned[0, 1, 0, 0, 2] = bad
    out = sampled(value, [shape], locations, poisoned)
    assert out[0, 1].isnan().all()
    assert out[0, 0].isfinite().all()
    weights.requires_grad_()
    out = sampled(value, [shape], locations, weights)
    grad_out = torch.ones_like(out)
    grad_out[0, 1, 3] = bad
    (grad,) = torch.autograd.grad(out, weights, grad_out)
    assert grad[0, 1, 0, 0, 2].isnan()
    assert grad[0, 0].isfinite().all()


# -- cells that are not read -------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [16, 20])
@pytest.mark.parametrize("shape", [(3, 3, 4), (4, 5)], ids=["video", "image"])
def test_cells_that_are_not_read_do_not_leak(
    backend: str, shape: tuple[int, ...], head_dim: int
) -> None:
    """Every position at, inside and outside every corner, edge and face; all else is poison."""
    sizes = shape[::-1]
    clean = torch.randn(math.prod(shape), head_dim, dtype=torch.float64)
    poison = torch.full_like(clean, NAN)
    poison[1::3], poison[2::3] = INF, -INF
    for at in itertools.product(*((-7.0, -0.5, 0.25, size - 0.75, size + 7.0) for size in sizes)):
        value = poison.clone()
        for corner in itertools.product((0, 1), repeat=len(shape)):
            cells = [int(x // 1) + step for x, step in zip(at, corner, strict=True)]
            if all(0 <= cell < size for cell, size in zip(cells, sizes, strict=True)):
                row = 0
                for cell, size in zip(reversed(cells), shape, strict=True):
                    row = row * size + cell
                value[row] = clean[row]
        expected = _read("reference", clean, shape, at)
        assert_close(_read(backend, value, shape, at), expected, "forward")


def test_cells_that_are_not_read_do_not_leak_into_gradients(backend: str) -> None:
    for form in FORMS:
        problem = draw(form, [(3, 4, 5)], num_queries=2, num_points=1, num_heads=1, batch=1)
        untouched = (oracle_gradients(problem, form)[0] == 0).all(-1, keepdim=True)
        assert untouched.any()
        clean = dataclasses.replace(problem, value=torch.where(untouched, 0.0, problem.value))
        poisoned = dataclasses.replace(problem, value=torch.where(untouched, NAN, problem.value))
        assert_results_close(results(poisoned, form, backend), oracle_results(clean, form), form)


def test_poison_in_another_batch_row_head_or_level_does_not_leak(backend: str) -> None:
    problem = draw("points", head_dim=20)
    value = problem.value.clone()
    value[0] = NAN
    value[1, :, 1] = INF
    out = forward(dataclasses.replace(problem, value=value), "points", backend)
    expected = oracle_forward(problem, "points")
    assert_close(out[1, :, :20], expected[1, :, :20], "forward")
    # Level 1 is poison, but all its locations are outside.
    problem.sampling_locations[:, :, :, 1] = 2.0
    expected = oracle_forward(problem, "locations")
    problem.value[:, 120:] = NAN
    assert_close(forward(problem, "locations", backend), expected, "forward")


# -- kinks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [-1.0, 0.0, 2.0, 3.0, 4.0])
def test_on_a_kink_the_gradient_is_one_sided(backend: str, cell: float) -> None:
    """At a cell's centre the slope is the one to the right of it, as in `grid_sample`."""
    value = torch.randn(1, 4, 1, 16, dtype=torch.float64)
    locations = torch.tensor([(cell + 0.5) / 4, 0.5], dtype=torch.float64, requires_grad=True)
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    out = operator("locations", backend)(value, [(1, 4)], locations.view(1, 1, 1, 1, 1, 2), weights)
    (slope,) = torch.autograd.grad(out.sum(), locations)
    padded = torch.cat([value.new_zeros(1), value.sum((0, 2, 3)), value.new_zeros(2)])
    at = int(cell) + 1
    expected = 4 * (padded[at + 1] - padded[at]) if cell < 4 else value.new_zeros(())
    assert_close(slope[0], expected, "gradient")
