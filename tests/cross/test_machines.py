"""The CPU kernels on every machine of machines.py: results and gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from stdeform.testing import Problem
from tests.support.cases import (
    DTYPES,
    FORMS,
    IMAGE,
    VIDEO,
    assert_results_close,
    draw,
    forward,
    names,
    results,
)


def check(problem: Problem, form: str, machine: str) -> None:
    """Compares result and gradients with the reference in float64."""
    expected = results(problem.to(torch.float64), form, "reference")
    assert_results_close(results(problem, form, machine), expected, form)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(machine: str, form: str, dtype: str) -> None:
    value_dtype, side_dtype = DTYPES[dtype]
    dtypes = {"dtype": value_dtype, "side_dtype": side_dtype}
    for shapes in (VIDEO, IMAGE):
        check(draw(form, shapes, num_points=(2, 5), head_dim=21, **dtypes), form, machine)
    # Fewer than two corners per cell: the value is read where it is, not packed.
    for shapes in ([(4, 12, 10), (1, 1, 2)], [(24, 20), (1, 1)]):
        check(draw(form, shapes, num_queries=9, head_dim=32, **dtypes), form, machine)


@pytest.mark.parametrize("head_dim", [1, 8, 12, 24, 130])
def test_head_dims(machine: str, head_dim: int) -> None:
    """Blocks of every number of vectors."""
    for dtype in ("f64", "f32", "f16", "bf16"):
        check(draw("points", head_dim=head_dim, dtype=DTYPES[dtype][0]), "points", machine)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_16_bit_number_is_converted_as_by_pytorch(machine: str, dtype: str) -> None:
    """Read, multiplied in float32 and rounded: ties, subnormal numbers, overflow, infinity, NaN."""
    value_dtype, side_dtype = DTYPES[f"{dtype}-f32"]
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    weights = torch.tensor([1, 1 + 2**-8, 1 + 2**-11, 1.5, 2**-9, -(2**-20)])
    sizes = {"batch": 1, "num_queries": len(weights), "num_heads": 1, "num_points": 1}
    problem = dataclasses.replace(
        draw("locations", [(1, 1)], dtype=value_dtype, side_dtype=side_dtype, **sizes),
        value=patterns.view(value_dtype).view(1, 1, 1, -1),
        sampling_locations=torch.full((1, len(weights), 1, 1, 1, 2), 0.5),
        attention_weights=weights.view(1, -1, 1, 1, 1),
    )
    expected = (weights[:, None] * patterns.view(value_dtype).float()).to(value_dtype)
    found = forward(problem, "locations", machine)[0]
    assert (found.isnan() == expected.isnan()).all()
    assert torch.equal(found.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e4, 1e38])
@pytest.mark.parametrize("form", FORMS)
def test_a_coordinate_that_is_no_number_is_outside(machine: str, form: str, bad: float) -> None:
    """Conversions to integers, of numbers that these cannot hold, differ between processors."""
    for dtype in ("f64", "f32", "bf16"):
        problem = draw(form, dtype=DTYPES[dtype][0])
        getattr(problem, names(form)[-2])[1, 2, 0, 1, 1] = bad
        check(problem, form, machine)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [16, 20])
def test_cells_that_are_not_read_do_not_leak(machine: str, dtype: str, head_dim: int) -> None:
    for form in FORMS:
        few = {"batch": 1, "num_heads": 1, "num_points": 1, "num_queries": 2}
        clean = draw(form, [(3, 4, 5)], dtype=DTYPES[dtype][0], head_dim=head_dim, **few)
        expected = results(clean.to(torch.float64), form, "reference")
        untouched = (expected[1] == 0).all(-1, keepdim=True)
        assert untouched.any()
        poisoned = torch.where(untouched, math.nan, clean.value)
        found = results(dataclasses.replace(clean, value=poisoned), form, machine)
        assert_results_close(found, expected, form)
