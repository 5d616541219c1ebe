"""One axis, N = 1: levels of rows (T,), as temporal models have them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stdeform.testing import Problem
from tests.support.cases import (
    FORMS,
    arguments,
    check_against_oracle,
    draw,
    gradients,
    operator,
    results,
)

LINES = ((7,), (3,), (1,))


def _as_image(problem: Problem) -> Problem:
    """The same samples in images of one row."""
    columns = problem.reference_points.shape[-1]
    middle = torch.full_like(problem.reference_points[..., :1], 0.5)
    points = [problem.reference_points[..., :1], middle]
    if columns == 2:
        points += [problem.reference_points[..., 1:], torch.ones_like(middle)]
    return dataclasses.replace(
        problem,
        spatial_shapes=tuple((1, *row) for row in problem.spatial_shapes),
        sampling_locations=F.pad(problem.sampling_locations, (0, 1), value=0.5),
        sampling_offsets=F.pad(problem.sampling_offsets, (0, 1)),
        reference_points=torch.cat(points, -1),
    )


@pytest.mark.parametrize("num_points", [3, (5, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_an_image_of_one_row_is_the_same_to_the_bit(
    on_cpu: str, form: str, dtype: torch.dtype, num_points: int | tuple[int, ...]
) -> None:
    problem = draw(form, LINES, dtype=dtype, num_points=num_points)
    image = _as_image(problem)
    found, expected = (results(p, form, on_cpu) for p in (problem, image))
    for one, other in zip(found, expected, strict=True):
        same = other if one.shape == other.shape else other[..., : 2 * one.shape[-1] : 2]
        assert torch.equal(one, same)


@pytest.mark.parametrize("form", FORMS)
def test_against_the_oracle(on_cpu: str, form: str) -> None:
    check_against_oracle(draw(form, LINES), form, on_cpu)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_coordinate_that_is_no_number_reads_nothing(on_cpu: str, bad: float) -> None:
    problem = draw("points", LINES)
    problem.sampling_offsets[0, 0, 0, 0, 0] = bad
    grads = gradients(problem, "points", on_cpu)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert grads[2][0, 0, 0, 0, 0] == 0


@pytest.mark.parametrize("form", FORMS)
def test_derivatives(on_cpu: str, form: str) -> None:
    sizes = {"batch": 1, "num_queries": 2, "num_heads": 1, "head_dim": 2, "num_points": (1, 2)}
    problem = draw(form, LINES[:2], **sizes, dtype=torch.float64, offset_std=1.0)
    value, shapes, *others = arguments(problem, form)

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return operator(form, on_cpu)(value, shapes, *others, num_points=problem.num_points)

    inputs = [tensor.requires_grad_() for tensor in (value, *others)]
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)
    if on_cpu == "reference":  # a compiler takes long over it, and sees nothing else than images
        return
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    pairs = zip(
        *(torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, attend)), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)
