"""The CUDA kernels, run on the processor: their own sources, the problems and tolerances of all.

What only a GPU can tell stands elsewhere; what its threads compute is tested here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from stdeform.testing import LAYOUTS, Layout, Problem, assert_close
from tests.cases import (
    AXES,
    DTYPES,
    FORMS,
    IMAGE,
    VIDEO,
    assert_gradients_close,
    draw,
    names,
    oracle_forward,
    oracle_gradients,
)
from tests.cases import forward as forward_of
from tests.cases import gradients as gradients_of
from tests.cuda_on_cpu import build, emulated, problems
from tests.cuda_on_cpu.emulated import Machine
from tests.cuda_on_cpu.emulator import FIFO, LIFO, Schedule

# Of the templates: every class of head_dim, and sizes that fall into none.
VECTOR_DIMS = (16, 32, 48, 64, 96, 128)
OTHER_DIMS = (1, 3, 8, 20, 130)
MACHINES = {
    "lifo": Machine(schedule=LIFO, side="start"),
    "random": Machine(schedule=Schedule("random", seed=1)),
    "older": Machine(build.COVERAGE),
    "checked": Machine(build.CHECKED),
    "checked-start": Machine(build.CHECKED, side="start"),
    "preempted": Machine(build.CHECKED, Schedule("random", seed=2, preempt_one_in=20)),
}


def check(problem: Problem, form: str, machine: Machine = emulated.PLAIN) -> None:
    """Holds result and gradients against the composite in float64."""
    exact = problem.to(torch.float64)
    out = problems.forward(problem, form, machine)
    assert_close(out, forward_of(exact, form, "composite"), "forward")
    grads = problems.gradients(problem, form, machine)
    assert_gradients_close(_all(grads), gradients_of(exact, form, "composite"), form)


def _all(grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    assert all(grad is not None for grad in grads)
    return [grad for grad in grads if grad is not None]


# -- right ---------------------------------------------------------------------------------------


@functools.cache
def _problem(form: str, axes: str, dtype: str) -> tuple[Problem, Tensor, tuple[Tensor, ...]]:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(form, AXES[axes], dtype=value_dtype, side_dtype=side_dtype)
    return problem, oracle_forward(problem, form), oracle_gradients(problem, form)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(form: str, axes: str, dtype: str) -> None:
    problem, out, grads = _problem(form, axes, dtype)
    assert_close(problems.forward(problem, form), out, "forward")
    assert_gradients_close(_all(problems.gradients(problem, form)), grads, form)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [*VECTOR_DIMS, *OTHER_DIMS])
def test_head_dims(head_dim: int, dtype: str) -> None:
    for axes, form in zip(AXES.values(), ("locations", "points"), strict=True):
        check(draw(form, axes, head_dim=head_dim, dtype=DTYPES[dtype][0]), form)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_machines(dtype: str, machine: str) -> None:
    for head_dim, form in itertools.product((5, 16, 48), FORMS):
        axes = IMAGE if form == "points" else VIDEO
        check(draw(form, axes, head_dim=head_dim, dtype=DTYPES[dtype][0]), form, MACHINES[machine])


@pytest.mark.parametrize("num_points", [1, 2, 7, 8, 9, 31, 33])
def test_numbers_of_points(num_points: int) -> None:
    for head_dim, form in itertools.product((16, 48, 7), ("points", "boxes")):
        check(draw(form, num_points=num_points, num_queries=3, head_dim=head_dim), form)


@pytest.mark.parametrize("num_queries", [1, 2, 15, 16, 17, 65])
def test_numbers_of_queries(num_queries: int) -> None:
    for head_dim in (16, 48, 7):
        check(draw("points", IMAGE, num_queries=num_queries, head_dim=head_dim), "points")


@pytest.mark.parametrize(
    "shapes",
    [[(1, 1, 1)], [(1, 1)], [(1, 7, 1), (5, 1, 1), (1, 1, 9)], [(8, 9), (4, 5), (2, 3), (1, 1)]],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_level_shapes(form: str, shapes: list[tuple[int, ...]]) -> None:
    check(draw(form, shapes), form)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_layouts(form: str, layout: Layout) -> None:
    for head_dim in (16, 5):
        check(draw(form, head_dim=head_dim).laid_out(layout), form)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("form", FORMS)
def test_odd_coordinates_read_nothing(form: str, odd: float) -> None:
    for machine, dtype in itertools.product(
        (emulated.PLAIN, MACHINES["checked"]), (torch.float64, torch.float32, torch.bfloat16)
    ):
        problem = draw(form, dtype=dtype)
        field = "sampling_locations" if form == "locations" else "sampling_offsets"
        positions = getattr(problem, field).clone()
        positions[:, ::2, :, :, 1, 0] = odd
        problem = dataclasses.replace(problem, **{field: positions})
        out = problems.forward(problem, form, machine)
        assert_close(out, oracle_forward(problem, form), "forward")
        value, *_ = grads = _all(problems.gradients(problem, form, machine))
        assert all(grad.isfinite().all() for grad in grads)
        with np.errstate(invalid="ignore"):  # the oracle's other gradients: zero times infinity
            expected, *_ = oracle_gradients(problem, form)
        assert_close(value, expected, "gradient")


def test_nothing_outside_is_added_to() -> None:
    # All samples far outside: no gradient of the value, and zeros for all others.
    problem = draw("points")
    offsets = torch.full_like(problem.sampling_offsets, 100.0)
    problem = dataclasses.replace(problem, sampling_offsets=offsets)
    assert not problems.forward(problem, "points").any()
    assert not any(grad.any() for grad in _all(problems.gradients(problem, "points")))


@pytest.mark.parametrize(("batch", "num_queries"), [(0, 7), (2, 0)])
def test_empty_problems(batch: int, num_queries: int) -> None:
    problem = draw("points", batch=batch, num_queries=num_queries)
    assert problems.forward(problem, "points").numel() == 0
    value, *others = _all(problems.gradients(problem, "points"))
    assert not value.any()
    assert all(grad.numel() == 0 for grad in others)


# -- what was asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_any_gradients_can_be_asked_for(form: str) -> None:
    problem = draw(form)
    everything = problems.gradients(problem, form)
    for count in range(1, len(names(form))):
        for needs in itertools.combinations(names(form), count):
            some = problems.gradients(problem, form, needs=needs)
            for name, one, of_all in zip(names(form), some, everything, strict=True):
                if name not in needs:
                    assert one is None
                else:
                    assert one is not None
                    assert of_all is not None
                    assert_close(one, of_all.double(), "gradient", name)


def test_one_launch_on_the_queue_that_was_named() -> None:
    emulator = emulated.PLAIN.emulator
    problem = draw("points")
    emulator.take_launches()
    for device, stream in ((0, 0), (1, 16), (0, 24)):
        machine = Machine(device=device, stream=stream)
        problems.forward(problem, "points", machine)
        problems.gradients(problem, "points", machine)
        launches = emulator.take_launches()
        assert [(launch.device, launch.stream) for launch in launches] == [(device, stream)] * 2
        assert ["forward" in launches[0].kernel, "backward" in launches[1].kernel] == [True, True]


def test_a_device_that_is_not_there() -> None:
    problem = draw("points")
    with pytest.raises(RuntimeError, match=r"invalid device ordinal \(B = 2, Q = 7, S = 138, "):
        problems.forward(problem, "points", Machine(device=7))
    emulator = emulated.PLAIN.emulator
    emulator.take_launches()
    problems.forward(problem, "points")
    assert [launch.device for launch in emulator.take_launches()] == [0]


def test_too_many_levels_are_refused() -> None:
    problem = draw("points", [(1, 1)] * 65)
    with pytest.raises(RuntimeError, match="at most 64 levels, got L = 65"):
        problems.forward(problem, "points")


def test_orders_agree() -> None:
    # Only additions to the value's gradient may come in another order.
    problem = draw("boxes", VIDEO)
    machines = [Machine(schedule=s) for s in (FIFO, LIFO, Schedule("random", seed=4))]
    results = [problems.forward(problem, "boxes", machine) for machine in machines]
    assert all(torch.equal(result, results[0]) for result in results)
    grads = [_all(problems.gradients(problem, "boxes", machine))[1:] for machine in machines]
    assert all(
        torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True)
    )


# -- under sanitizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [build.ADDRESS, build.THREAD], ids=lambda v: v.name)
def test_sanitizers(variant: build.Variant) -> None:
    program = build.program([*emulated.sources(), build.HERE / "operator_main.cpp"], variant)
    done = build.run(program)
    assert not done.stderr
    assert done.stdout == "72 problems, 0 failures\n"
