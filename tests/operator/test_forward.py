"""The result of every backend, compared with oracles."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
import torch
from torch import Tensor

from stdeform.testing import LAYOUTS, Layout, Problem, assert_close, with_layout
from tests.cuda.emulated_gpu import HAS_GPU
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    IMAGE,
    NATIVE,
    VIDEO,
    arguments,
    draw,
    forward,
    names,
    operator,
    oracle_forward,
    tensors,
)


@functools.cache
def _problem(form: str, axes: str, dtype: str) -> tuple[Problem, Tensor]:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(form, AXES[axes], dtype=value_dtype, side_dtype=side_dtype)
    return problem, oracle_forward(problem, form)


@functools.cache
def _problem_of_head_dim(form: str, axes: str, dtype: str, head_dim: int) -> tuple[Problem, Tensor]:
    problem = draw(form, AXES[axes], head_dim=head_dim, dtype=DTYPES[dtype][0])
    return problem, forward(problem.to(torch.float64), form, "baseline")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(backend: str, form: str, axes: str, dtype: str) -> None:
    problem, expected = _problem(form, axes, dtype)
    out = forward(problem, form, backend)
    assert out.dtype == problem.value.dtype
    assert out.is_contiguous()
    assert_close(out, expected, "forward")


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("head_dim", [1, 3, 5, 8, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 130])
def test_head_dims(kernel: str, head_dim: int, dtype: str) -> None:
    for axes, form in itertools.product(AXES, ("locations", "points")):
        problem, expected = _problem_of_head_dim(form, axes, dtype, head_dim)
        assert_close(forward(problem, form, kernel), expected, "forward")


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, 1)],
        [(1, 1)],
        [(1, 7, 1), (5, 1, 1), (1, 1, 9)],
        [(8, 9), (4, 5), (2, 3), (1, 1)],
        [(3, 40, 2)],
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_level_shapes(backend: str, form: str, shapes: list[tuple[int, ...]]) -> None:
    problem = draw(form, shapes)
    assert_close(forward(problem, form, backend), oracle_forward(problem, form), "forward")


@pytest.mark.parametrize("num_points", [1, 2, 31, 64, 65, 200])
def test_numbers_of_points(kernel: str, num_points: int) -> None:
    # Around and past the size of the kernel's chunk of samples, across levels too.
    problem = draw("points", num_points=num_points, num_queries=3, dtype=torch.float64)
    expected = forward(problem, "points", "baseline")
    assert_close(forward(problem, "points", kernel), expected, "forward")


@pytest.mark.parametrize("num_queries", [1, 500])
@pytest.mark.parametrize("num_heads", [1, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_few_and_many_samples_per_cell(
    kernel: str, batch: int, num_heads: int, num_queries: int
) -> None:
    sizes = {"batch": batch, "num_heads": num_heads, "num_queries": num_queries}
    for head_dim in (16, 20):
        problem = draw("points", **sizes, head_dim=head_dim)
        expected = forward(problem.to(torch.float64), "points", "baseline")
        assert_close(forward(problem, "points", kernel), expected, "forward")


# -- memory layouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32"])
@pytest.mark.parametrize("form", FORMS)
def test_layouts(backend: str, form: str, dtype: str, layout: Layout) -> None:
    problem, _ = _problem(form, "video", dtype)
    problem = problem.laid_out(layout)
    assert_close(forward(problem, form, backend), oracle_forward(problem, form), "forward")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@pytest.mark.parametrize("form", FORMS)
def test_layouts_of_one_tensor(backend: str, form: str, layout: Layout) -> None:
    problem, _ = _problem(form, "video", "f32")
    for name in names(form):
        strided = with_layout(getattr(problem, name), layout)
        one = dataclasses.replace(problem, **{name: strided})  # type: ignore[arg-type]
        assert_close(forward(one, form, backend), oracle_forward(one, form), "forward")


def test_inputs_are_left_alone(backend: str) -> None:
    for form in FORMS:
        problem, _ = _problem(form, "video", "f32")
        before = [tensor.clone() for tensor in tensors(arguments(problem, form))]
        forward(problem, form, backend)
        for tensor, copy in zip(tensors(arguments(problem, form)), before, strict=True):
            assert torch.equal(tensor, copy)


def test_an_expanded_axis_of_channels(backend: str) -> None:
    problem, _ = _problem("points", "video", "f32")
    value = problem.value[..., :1].expand_as(problem.value)
    problem = dataclasses.replace(problem, value=value)
    assert_close(forward(problem, "points", backend), oracle_forward(problem, "points"), "forward")


# -- empty problems ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "num_queries"), [(0, 7), (2, 0), (0, 0)], ids=["B=0", "Q=0", "B=Q=0"]
)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_empty(backend: str, form: str, axes: str, batch: int, num_queries: int) -> None:
    problem = draw(form, AXES[axes], batch=batch, num_queries=num_queries, dtype=torch.float16)
    out = forward(problem, form, backend)
    assert out.shape == (batch, num_queries, 32)
    assert out.dtype == torch.float16


# -- borders and coordinates that are no numbers -----------------------------------------------


def _read_one(
    backend: str, value: Tensor, shape: tuple[int, ...], *cells: tuple[float, ...]
) -> Tensor:
    """Reads one head's value [S, D] at pixel coordinates (x, y[, t]), weight 1 each: [Q, D]."""
    sizes = torch.tensor(shape[::-1], dtype=value.dtype)
    locations = (torch.tensor(cells, dtype=value.dtype) + 0.5) / sizes
    return operator("locations", backend)(
        value[None, :, None],
        [shape],
        locations[None, :, None, None, None],
        value.new_ones(1, len(cells), 1, 1, 1),
    )[0]


@pytest.mark.parametrize(
    ("num_axes", "axis"),
    [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)],
    ids=["image-x", "image-y", "video-x", "video-y", "video-t"],
)
@pytest.mark.parametrize(
    ("cell", "share"),
    [
        # In cells along an axis of 4: the part of the border cell's (0 or 3) value that is read.
        (-1.5, {}),
        (-1.0, {}),
        (-0.75, {0: 0.25}),
        (-0.5, {0: 0.5}),
        (0.0, {0: 1.0}),
        (0.25, {0: 0.75, 1: 0.25}),
        (2.0, {2: 1.0}),
        (3.0, {3: 1.0}),
        (3.25, {3: 0.75}),
        (3.5, {3: 0.5}),
        (4.0, {}),
        (4.5, {}),
        (1e4, {}),
        (-1e4, {}),
        (1e30, {}),
        (-1e30, {}),
        (float("inf"), {}),
        (float("-inf"), {}),
        (float("nan"), {}),
    ],
    ids=lambda case: str(case) if isinstance(case, float) else "",
)
def test_borders(
    backend: str, num_axes: int, axis: int, cell: float, share: dict[int, float]
) -> None:
    shape = (4,) * num_axes
    value = torch.randn(4**num_axes, 16)
    at = [1.0] * num_axes
    at[axis] = cell
    stride = 4**axis
    others = sum(4**other for other in range(num_axes) if other != axis)
    expected = torch.zeros(16)
    for index, weight in share.items():
        expected += weight * value[others + index * stride]
    assert torch.equal(_read_one(backend, value, shape, tuple(at))[0], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e38])
@pytest.mark.parametrize("form", FORMS)
def test_a_coordinate_that_is_no_number_reads_nothing(backend: str, form: str, bad: float) -> None:
    # The other points of the head keep their weights.
    for side in (torch.float32, torch.bfloat16):
        problem = draw(form, dtype=torch.bfloat16, side_dtype=side)
        locations = problem.sampling_locations.clone()
        offsets = problem.sampling_offsets.clone()
        locations[0, 1, 1, 0, 2, 1] = bad
        offsets[0, 1, 1, 0, 2, 1] = bad
        problem = dataclasses.replace(
            problem, sampling_locations=locations, sampling_offsets=offsets
        )
        expected = oracle_forward(problem, form)
        assert torch.isfinite(expected).all()
        assert_close(forward(problem, form, backend), expected, "forward")


@pytest.mark.parametrize("column", range(6), ids=["x", "y", "t", "w", "h", "d"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reference_that_is_no_number_reads_nothing(backend: str, bad: float, column: int) -> None:
    for form in ("points", "boxes"):
        problem = draw(form)
        if column >= problem.reference_points.shape[-1]:
            continue
        problem.reference_points[1, 2, 0, column] = bad
        expected = oracle_forward(problem, form)
        assert torch.isfinite(expected).all()
        assert_close(forward(problem, form, backend), expected, "forward")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("head_dim", [16, 20])
@pytest.mark.parametrize("shape", [(3, 3, 4), (4, 5)], ids=["video", "image"])
def test_cells_that_are_not_read_do_not_leak(
    backend: str, shape: tuple[int, ...], head_dim: int, poison: float
) -> None:
    """Every position at, inside and outside every corner, edge and face; all else is poison."""
    num_axes, sizes = len(shape), shape[::-1]
    clean = torch.randn(int(torch.tensor(shape).prod()), head_dim, dtype=torch.float64)
    for at in itertools.product(*((-7.0, -0.5, 0.25, size - 0.75, size + 7.0) for size in sizes)):
        value = torch.full_like(clean, poison)
        for corner in itertools.product((0, 1), repeat=num_axes):
            cells = [int(x // 1) + step for x, step in zip(at, corner, strict=True)]
            if all(0 <= cell < size for cell, size in zip(cells, sizes, strict=True)):
                row = 0
                for cell, size in zip(reversed(cells), shape, strict=True):
                    row = row * size + cell
                value[row] = clean[row]
        expected = _read_one("reference", clean, shape, at)
        out = _read_one(backend, value, shape, at)
        assert torch.isfinite(out).all(), at
        assert_close(out, expected, "forward")


def test_poison_in_another_batch_row_head_or_level_does_not_leak(backend: str) -> None:
    problem = draw("points", head_dim=20)
    value = problem.value.clone()
    value[0] = torch.nan
    value[1, :, 1] = torch.inf
    out = forward(dataclasses.replace(problem, value=value), "points", backend)
    expected = oracle_forward(problem, "points")
    assert_close(out[1, :, :20], expected[1, :, :20], "forward")
    # Level 1 is poison, but all its locations are outside.
    value = problem.value.clone()
    value[:, 120:] = torch.nan
    locations = problem.sampling_locations.clone()
    locations[:, :, :, 1] = 2.0
    problem = dataclasses.replace(problem, sampling_locations=locations)
    out = forward(dataclasses.replace(problem, value=value), "locations", backend)
    assert_close(out, oracle_forward(problem, "locations"), "forward")


# -- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16-f32", "bf16-f32"])
def test_half_values_keep_float32_coordinates(backend: str, dtype: str) -> None:
    """On a long axis, a coordinate in half could not tell neighbouring cells apart."""
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw("points", [(2, 3, 3000)], dtype=value_dtype, side_dtype=side_dtype)
    exact = problem.to(torch.float64)
    expected = forward(exact, "points", "baseline")
    # A float32 coordinate near 3000 is exact to 2e-4 cells: a hundredth of a unit of half.
    error = (forward(problem, "points", backend).double() - expected).abs()
    allowed = torch.finfo(value_dtype).eps / 2 * expected.abs() + 1e-3
    assert (error <= allowed).all()


def test_large_logits_do_not_overflow(backend: str) -> None:
    problem = draw("points")
    for shift in (-1e4, 1e4):
        moved = dataclasses.replace(problem, attention_logits=problem.attention_logits + shift)
        assert_close(forward(moved, "points", backend), oracle_forward(moved, "points"), "forward")


def test_logits_of_minus_infinity_switch_points_off(backend: str) -> None:
    problem = draw("points")
    logits = problem.attention_logits.clone()
    logits[..., 1:, :] = -torch.inf
    masked = dataclasses.replace(problem, attention_logits=logits)
    out = forward(masked, "points", backend)
    first = dataclasses.replace(
        problem,
        spatial_shapes=problem.spatial_shapes[:1],
        value=problem.value[:, :120],
        reference_points=problem.reference_points[:, :, :1],
        sampling_offsets=problem.sampling_offsets[:, :, :, :1],
        attention_logits=problem.attention_logits[:, :, :, :1],
    )
    assert_close(out, oracle_forward(first, "points"), "forward")


# -- sizes past 2^31 ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        *NATIVE,
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not HAS_GPU, reason="needs a GPU: a million blocks are many"),
        ),
    ],
    indirect=True,
)
def test_more_than_two_to_the_31_elements(kernel: str) -> None:
    """An expanded value of 2^31 + 2^27 elements, one row of memory for all its heads."""
    heads, head_dim, shape = 2**20 + 2**16, 16, (2, 8, 8)
    small = draw("points", [shape], batch=1, num_queries=1, num_heads=2, num_points=1)
    at = torch.arange(heads) % 2
    problem = dataclasses.replace(
        small,
        value=small.value[:, :, :1].expand(-1, -1, heads, -1),
        sampling_offsets=small.sampling_offsets[:, :, at],
        attention_logits=small.attention_logits[:, :, at],
    )
    assert problem.value.numel() > 2**31
    out = forward(problem, "points", kernel).view(heads // 2, 2 * head_dim)
    same = dataclasses.replace(small, value=small.value[:, :, :1].expand(-1, -1, 2, -1))
    assert_close(out[:1], oracle_forward(same, "points")[0], "forward")
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize("axis", ["batch", "cells", "heads"])
def test_strides_past_two_to_the_31(backend: str, axis: str) -> None:
    """Cells more than 2^31 elements apart, in memory that is never touched between."""
    small = draw("points", [(2, 2, 2)], dtype=torch.bfloat16, head_dim=16)
    dim = {"batch": 0, "cells": 1, "heads": 2}[axis]
    sizes = small.value.shape
    strides = [0, 0, 0, 1]
    step = 16
    for other in (2, 1, 0):
        if other != dim:
            strides[other] = step
            step *= sizes[other]
    strides[dim] = 2**31 // (sizes[dim] - 1) + step
    try:
        memory = torch.empty(strides[dim] * (sizes[dim] - 1) + step, dtype=torch.bfloat16)
    except RuntimeError as refused:
        pytest.skip(f"this machine does not lend 4 GiB of address space: {refused}")
    value = memory.as_strided(sizes, strides).copy_(small.value)
    far = dataclasses.replace(small, value=value)
    assert torch.equal(forward(far, "points", backend), forward(small, "points", backend))


# -- backends ----------------------------------------------------------------------------------


def test_auto_takes_the_kernel(needs_native: None) -> None:
    problem = draw("points")
    auto = operator("points", "auto")(*problem.from_offsets)
    assert torch.equal(auto, forward(problem, "points", "native"))


@pytest.mark.parametrize("shapes", [VIDEO, IMAGE], ids=["video", "image"])
def test_rows_may_be_lists_tuples_or_sizes(
    backend: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    problem = draw("locations", shapes)
    for rows in ([list(row) for row in shapes], [torch.Size(row) for row in shapes]):
        out = operator("locations", backend)(
            problem.value, rows, problem.sampling_locations, problem.attention_weights
        )
        assert torch.equal(out, forward(problem, "locations", backend))
