"""Three oracles agree, and the tolerances reject what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stdeform import reference
from stdeform.shapes import level_starts, num_cells
from stdeform.testing import TOLERANCES, assert_close, excess, make_problem
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    check_against_oracle,
    draw,
    forward,
    operator,
    oracle_forward,
    oracle_gradients,
    tensors,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("other", ["reference", "baseline"])
def test_oracles_agree(other: str, axes: str, form: str) -> None:
    check_against_oracle(draw(form, AXES[axes], dtype=torch.float64), form, other)


def test_both_forms_ask_for_the_same_samples() -> None:
    for form in ("points", "boxes"):
        problem = draw(form, dtype=torch.float64)
        same = forward(problem, "locations", "reference")
        assert_close(forward(problem, form, "reference"), same, "forward")


# -- mutants: each is the operator with one mistake --------------------------------------------

Function = Callable[[Tensor, Sequence[Sequence[int]], Tensor, Tensor], Tensor]


def half_cell_shift(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    sizes = locations.new_tensor([list(shape)[::-1] for shape in shapes])
    return reference.st_deform_attn(value, shapes, locations + 0.5 / sizes[:, None], weights)


def swapped_axes(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    return reference.st_deform_attn(value, shapes, locations.flip(-1), weights)


def constant_output(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    out = reference.st_deform_attn(value, shapes, locations, weights)
    return out.mean().expand_as(out)


def align_corners(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    # location * (size - 1), where location * size - 0.5 is right
    sizes = locations.new_tensor([list(shape)[::-1] for shape in shapes])[:, None]
    moved = (locations * (sizes - 1) + 0.5) / sizes
    return reference.st_deform_attn(value, shapes, moved, weights)


def border_padding(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    sizes = locations.new_tensor([list(shape)[::-1] for shape in shapes])[:, None]
    inside = locations.clamp(0.5 / sizes, 1 - 0.5 / sizes)
    return reference.st_deform_attn(value, shapes, inside, weights)


def swapped_points(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    return reference.st_deform_attn(value, shapes, locations, weights.flip(-1))


def low_precision_coordinates(
    value: Tensor, shapes: Any, locations: Tensor, weights: Tensor
) -> Tensor:
    low = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float16
    return reference.st_deform_attn(value, shapes, locations.to(low), weights)


def low_precision_sums(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    low = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float16
    out: Tensor | int = 0
    for level, (start, shape) in enumerate(zip(level_starts(shapes), shapes, strict=True)):
        rows = value[:, start : start + num_cells(shape)]
        for point in range(locations.shape[4]):
            at = (slice(None),) * 3 + (slice(level, level + 1), slice(point, point + 1))
            part = reference.st_deform_attn(rows, [shape], locations[at], weights[at])
            out = (out + part.to(low)).to(low)
    assert isinstance(out, Tensor)
    return out.to(value.dtype)


MUTANTS: dict[str, Function] = {
    function.__name__: function
    for function in (
        half_cell_shift,
        swapped_axes,
        constant_output,
        align_corners,
        border_padding,
        swapped_points,
        low_precision_coordinates,
        low_precision_sums,
    )
}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", ["forward", "gradient"])
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "f64-f32"])
def test_tolerances_reject_mutants(dtype: str, kind: str, axes: str) -> None:
    value_dtype, side_dtype = DTYPES[dtype]
    # Enough samples per cell that sums in low precision show.
    sizes = {"num_queries": 20, "num_points": 5}
    problem = draw("locations", AXES[axes], dtype=value_dtype, side_dtype=side_dtype, **sizes)
    leaves = tensors(problem.requires_grad_().attention)
    oracle = {"forward": oracle_forward, "gradient": oracle_gradients}[kind](problem, "locations")
    expected = [oracle] if kind == "forward" else oracle

    def worst(function: Function) -> float:
        out = function(*problem.attention)
        found = [out]
        if kind == "gradient":
            found = torch.autograd.grad(out, leaves, problem.grad_out)
        return max(excess(got, want, kind) for got, want in zip(found, expected, strict=True))

    far = {name: worst(MUTANTS[name]) for name in TOLERANCES[value_dtype, kind].rejects}
    if side_dtype in (torch.float16, torch.bfloat16):
        # Its coordinates are that coarse already; nothing is lost by the mutant.
        far.pop("low_precision_coordinates")
    assert min(far.values()) > 1, {name: f"{error:.3g}" for name, error in far.items()}
    assert worst(reference.st_deform_attn) <= 1


def test_every_mutant_stands_in_the_table() -> None:
    assert set(MUTANTS) == {name for row in TOLERANCES.values() for name in row.rejects}


def test_a_tolerance_rejects_nan_infinity_and_anything_where_zero_is_right() -> None:
    zero = torch.zeros(3)
    assert excess(zero, zero, "forward") == 0
    assert excess(torch.tensor([0.0, torch.nan, 0.0]), torch.ones(3), "forward") == torch.inf
    assert excess(torch.tensor([1.0, torch.inf, 1.0]), torch.ones(3), "forward") == torch.inf
    assert excess(torch.tensor([0.0, 1e-30, 0.0]), zero, "forward") == torch.inf
    with pytest.raises(AssertionError, match="result of shape"):
        assert_close(torch.ones(3), zero, "forward")
    with pytest.raises(ValueError, match="shapes differ"):
        assert_close(torch.ones(3), torch.ones(1), "forward")


def test_the_baseline_runs_in_the_wider_dtype() -> None:
    problem = make_problem(dtype=torch.bfloat16, side_dtype=torch.float32)
    out = operator("locations", "baseline")(*problem.attention)
    assert out.dtype == torch.bfloat16
    assert_close(out, oracle_forward(problem, "locations"), "forward")


def test_the_baseline_is_one_grid_sample_per_level(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape)
        return real(*args, **kwargs)

    real = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", counted)
    operator("points", "baseline")(*draw("points").from_offsets)
    assert len(calls) == 2
