"""The function of RT-DETRv2, D-FINE and DEIMv2 against that of D-FINE."""

from __future__ import annotations

import importlib

import pytest
import torch

from stdeform.integrations.transformers.attention import multi_scale_deformable_attention_v2
from stdeform.testing import make_problem

SHAPES, POINTS = [(5, 7), (3, 4), (1, 1)], [3, 6, 3]
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# The plain function rounds locations, samples and their sum to the dtype, by up to 2 ** -9 each in
# 16 bits; ours rounds the sum alone.
TOLERANCES = {HALF: 2**-6, SINGLE: 1e-6, DOUBLE: 1e-12}


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize(
    "dtypes",  # of value, locations and weights
    [(HALF, HALF, HALF), (HALF, SINGLE, HALF), (SINGLE, DOUBLE, SINGLE), (DOUBLE, DOUBLE, DOUBLE)],
)
def test_results(dtypes: tuple[torch.dtype, ...], method: str) -> None:
    problem = make_problem(SHAPES, num_points=POINTS)
    tensors = (problem.value, problem.sampling_locations, problem.attention_weights)
    value, locations, weights = map(torch.Tensor.to, tensors, dtypes)
    modeling = importlib.import_module("transformers.models.d_fine.modeling_d_fine")
    arguments = (SHAPES, locations, weights, POINTS, method)
    found = multi_scale_deformable_attention_v2(value, *arguments)
    if method == "default":  # there the plain function wants one dtype
        value, locations, weights = (each.to(found.dtype) for each in (value, locations, weights))
        arguments = (SHAPES, locations, weights, POINTS, method)
    expected = modeling.multi_scale_deformable_attention_v2(value, *arguments)
    assert found.dtype == expected.dtype
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize("points", [[3, 6], [3, 6, 4], [3, 6, 2]])
def test_wrong_numbers_of_points(points: list[int], method: str) -> None:
    problem = make_problem(SHAPES, num_points=POINTS)
    message = r"^num_points_list must have 3 numbers, .* add up to the 12 points .*, got \[3, 6"
    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attention_v2(
            problem.value,
            SHAPES,
            problem.sampling_locations,
            problem.attention_weights,
            points,
            method,
        )


def test_locations_that_are_no_tensor() -> None:
    problem = make_problem(SHAPES, num_points=POINTS)
    with pytest.raises(TypeError, match=r"^sampling_locations must be a Tensor, got list"):
        multi_scale_deformable_attention_v2(
            problem.value, SHAPES, [0.5], problem.attention_weights, POINTS
        )
