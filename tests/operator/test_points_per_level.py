"""Points that differ by level: positions [B, Q, M, P, N], scores [B, Q, M, P], `num_points`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stdeform
from stdeform.shapes import level_starts
from stdeform.testing import LAYOUTS, Layout, Problem, assert_close, make_problem
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    check_against_baseline,
    check_against_oracle,
    draw,
    forward,
    results,
)

# Around and past the CPU's chunk of 64 samples and the lanes of the CUDA kernels.
COUNTS = ((1, 3), (7, 2), (33, 31), (1, 70), (64, 64))
SAMPLES = "sampling_locations", "attention_weights", "sampling_offsets", "attention_logits"


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_against_the_oracle(backend: str, form: str, axes: str) -> None:
    for dtype in ("f64", "f32", "bf16-f32"):
        value_dtype, side_dtype = DTYPES[dtype]
        settings = {"dtype": value_dtype, "side_dtype": side_dtype, "num_points": (2, 5)}
        check_against_oracle(draw(form, AXES[axes], **settings), form, backend)


@pytest.mark.parametrize("num_points", COUNTS, ids=str)
def test_numbers_of_points(backend: str, num_points: tuple[int, int]) -> None:
    for form in FORMS:
        problem = draw(form, num_points=num_points, num_queries=3, dtype=torch.float64)
        check_against_baseline(problem, form, backend)


@pytest.mark.parametrize("form", FORMS)
def test_many_levels_in_one_vector(kernel: str, form: str) -> None:
    levels = [(2, 3, 3), (1, 2, 4)] * 4
    problem = draw(form, levels, num_points=(1, 1, 2, 1, 1, 3, 1, 70), num_queries=3)
    check_against_baseline(problem, form, kernel)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Otherwise a GPU adds to the gradient of the value in any order."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("form", FORMS)
def test_as_many_on_each_level_is_the_same_to_the_bit(backend: str, form: str) -> None:
    problem = draw(form, head_dim=20, num_points=9)
    listed: dict[str, Any] = {name: getattr(problem, name).flatten(3, 4) for name in SAMPLES}
    flat = dataclasses.replace(problem, **listed, num_points=(9, 9))
    pairs = zip(results(flat, form, backend), results(problem, form, backend), strict=True)
    for one, other in pairs:
        assert torch.equal(one, other.view_as(one))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(kernel: str, layout: Layout) -> None:
    for form in FORMS:
        problem = draw(form, num_points=(1, 4))
        check_against_baseline(problem.laid_out(layout), form, kernel)


@st.composite
def _problems(draw: st.DrawFn) -> Problem:
    num_axes = draw(st.integers(1, 3))
    shapes = draw(st.lists(st.tuples(*[st.integers(1, 5)] * num_axes), min_size=1, max_size=4))
    return make_problem(
        shapes,
        num_queries=draw(st.integers(1, 5)),
        head_dim=draw(st.sampled_from([1, 5, 16])),
        num_points=[draw(st.integers(1, 9)) for _ in shapes],
        boxes=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
        dtype=torch.float64,
    )


@given(problem=_problems())
def test_the_sum_of_its_levels(problem: Problem) -> None:
    """Each level alone, with its part of the weights, which are softmax over all of them."""
    counts = list(problem.num_points or ())
    samples = zip(
        level_starts(problem.spatial_shapes),
        problem.spatial_shapes,
        problem.sampling_locations.split(counts, 3),
        problem.attention_weights.split(counts, 3),
        strict=True,
    )
    expected: Tensor | float = 0.0
    for start, shape, locations, weights in samples:
        value = problem.value[:, start : start + stdeform.num_cells(shape)]
        args = (value, [shape], locations.unsqueeze(3), weights.unsqueeze(3))
        expected = expected + stdeform.st_deform_attn(*args, backend="reference")
    for form in ("locations", "points"):
        for backend in ("reference", "auto"):
            assert_close(forward(problem, form, backend), torch.as_tensor(expected), "forward")
