"""The CUDA backward by bins, on the processor: forced on small problems, and when it is chosen."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from stdeform.testing import Problem, make_problem
from tests.cuda.emulator import build, emulated
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import FIFO, LIFO, Schedule
from tests.support.backends import on_emulator, on_machine
from tests.support.cases import (
    DTYPES,
    FORMS,
    IMAGE,
    VIDEO,
    arguments,
    check_against_baseline,
    draw,
    gradients,
    tensors,
)

BINS = Machine(tuning={"backward_bins": 1})
# Warps that end within a bin, and a chunk for every head.
SHORT = Machine(tuning={"backward_bins": 1, "samples_per_warp": 5, "workspace_bytes": 0})
FIXED = Machine(deterministic=True)
MULTIPROCESSORS = (1, 4, 132)
WAYS = {"bins": BINS, "short": SHORT, "fixed": FIXED}


def on(machine: Machine, problem: Problem, form: str) -> tuple[Tensor, ...]:
    """The gradients of a problem as a machine computes them."""
    with on_machine(machine):
        return gradients(problem, form, "emulated")


def in_one_bin(num_queries: int, **settings: int) -> Problem:
    """A problem with all samples between the same cells of their level."""
    problem = draw("points", [(2, 3, 3)], num_queries=num_queries, **settings)
    return dataclasses.replace(
        problem,
        reference_points=torch.full_like(problem.reference_points, 0.5),
        sampling_offsets=torch.rand_like(problem.sampling_offsets) * 0.4 + 0.05,
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results(dtype: str, form: str, way: str) -> None:
    value, side = DTYPES[dtype]
    # Every layout, rows of several passes, and channels that fill none.
    head_dims = (32, 48, 64, 96, 5, 16, 130) if dtype in ("f32", "bf16") else (48, 5)
    with on_machine(WAYS[way]):
        for axes, head_dim in itertools.product((VIDEO, IMAGE), head_dims):
            problem = draw(form, axes, head_dim=head_dim, dtype=value, side_dtype=side)
            check_against_baseline(problem, form, "emulated")


@pytest.mark.parametrize("variant", ["lifo", "random", "checked", "checked-start", "preempted"])
@pytest.mark.parametrize("way", WAYS)
def test_machines(way: str, variant: str) -> None:
    machine = {
        "lifo": dataclasses.replace(WAYS[way], schedule=LIFO, side="start"),
        "random": dataclasses.replace(WAYS[way], schedule=Schedule("random", seed=1)),
        "checked": dataclasses.replace(WAYS[way], variant=build.CHECKED),
        "checked-start": dataclasses.replace(WAYS[way], variant=build.CHECKED, side="start"),
        "preempted": dataclasses.replace(
            WAYS[way], variant=build.CHECKED, schedule=Schedule("random", 2, preempt_one_in=20)
        ),
    }[variant]
    with on_machine(machine):
        for head_dim, form in itertools.product((5, 48), FORMS):
            axes = IMAGE if form == "points" else VIDEO
            check_against_baseline(draw(form, axes, head_dim=head_dim), form, "emulated")
        check_against_baseline(in_one_bin(25), "points", "emulated")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_queries", [1, 10, 11, 22, 40, 130])
def test_sizes_of_a_bin(num_queries: int, way: str) -> None:
    # With 3 points: around the 32 samples that a warp describes at a time, and the 128 of a warp.
    with on_machine(WAYS[way]):
        check_against_baseline(in_one_bin(num_queries, head_dim=32), "points", "emulated")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_coordinates_that_read_nothing(form: str, way: str) -> None:
    problem = draw(form)
    positions = "sampling_locations" if form == "locations" else "sampling_offsets"
    odd = getattr(problem, positions).clone()
    for i, x in enumerate((torch.nan, torch.inf, -torch.inf, 6e4, -6e4)):
        odd.view(-1)[i::11] = x
    problem = dataclasses.replace(problem, **{positions: odd})
    direct = on(emulated.PLAIN, problem, form)
    for one, other in zip(on(WAYS[way], problem, form), direct, strict=True):
        # Float32 sums of about a hundred terms, in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.isfinite().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_that_are_requested_alone(form: str, way: str) -> None:
    problem = draw(form)
    every = on(emulated.PLAIN, problem, form)
    for chosen in itertools.product((False, True), repeat=len(every) - 1):
        args = [
            arg.detach() if isinstance(arg, Tensor) else arg for arg in arguments(problem, form)
        ]
        requested = [t for t, wanted in zip(tensors(args), (True, *chosen), strict=True) if wanted]
        for tensor in requested:
            tensor.requires_grad_()
        with on_machine(WAYS[way]):
            grads = torch.autograd.grad(on_emulator(form)(*args), requested, problem.grad_out)
        expected = [g for g, wanted in zip(every, (True, *chosen), strict=True) if wanted]
        for one, other in zip(grads, expected, strict=True):
            # Float32 sums of about a hundred terms, in another order.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# -- the order of sums -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_deterministic_sums_have_one_order(dtype: str, form: str) -> None:
    # In bins of 30 samples, and in one of 600.
    for problem in (
        draw(form, [(2, 3, 3)], num_queries=250, dtype=DTYPES[dtype][0], head_dim=16),
        in_one_bin(200, head_dim=48),
    ):
        first = on(FIXED, problem, form)
        for schedule in (LIFO, Schedule("random", seed=3), Schedule("random", seed=4)):
            for memory in (0, 1 << 26):
                tuning = {"workspace_bytes": memory}
                machine = Machine(schedule=schedule, deterministic=True, tuning=tuning)
                assert all(map(torch.equal, on(machine, problem, form), first))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])  # rounding to fewer bits would hide the order
def test_deterministic_sums_are_those_of_any_launch(dtype: str, form: str) -> None:
    # Of 144 tiles of five queries or more, so that 132 multiprocessors all have work.
    problem = draw(form, [(2, 3, 3)], num_queries=180, dtype=DTYPES[dtype][0], head_dim=48)
    first = on(FIXED, problem, form)
    for number in MULTIPROCESSORS:
        for tuning in ({}, {"samples_per_warp": 5}, {"workspace_bytes": 0}, {"backward_bins": 0}):
            machine = Machine(deterministic=True, multiprocessors=number, tuning=tuning)
            assert all(map(torch.equal, on(machine, problem, form), first))


@pytest.mark.parametrize("form", FORMS)
def test_only_sums_in_memory_depend_on_the_launch(form: str) -> None:
    """The gradient of the value alone does, sample by sample: the test above has sums to mix up."""
    problem = draw(form, [(2, 3, 3)], num_queries=180, head_dim=48)
    found, blocks = [], []
    for number in MULTIPROCESSORS:
        # With one warp to a tile, or the sums of a row would depend on how many share it.
        tuning = {"backward_bins": 0, "backward_splits": 1}
        machine = Machine(multiprocessors=number, tuning=tuning)
        machine.emulator.take_launches()
        found.append(on(machine, problem, form))
        launches = machine.emulator.take_launches()
        blocks.append([each.grid[0] for each in launches if "ward_kernel" in each.kernel])
    (first, *rest), *others = found
    assert any(not torch.equal(value, first) for value, *_ in others)
    assert all(all(map(torch.equal, grads, rest)) for _, *grads in others)
    assert blocks == [[1, 3], [4, 12], [132, 144]]  # forward, backward


def test_other_sums_may_come_in_any_order() -> None:
    """What the tests above would miss if the schedules changed nothing."""
    problem = in_one_bin(200, head_dim=48)
    first, *rest = on(BINS, problem, "points")
    found = [on(dataclasses.replace(BINS, schedule=s), problem, "points") for s in (FIFO, LIFO)]
    assert any(not torch.equal(value, first) for value, *_ in found)
    # All other gradients belong to one sample or one row.
    assert all(all(map(torch.equal, others, rest)) for _, *others in found)


# -- when and how ----------------------------------------------------------------------------------


def _launches(machine: Machine, problem: Problem) -> list[str]:
    emulator = machine.emulator
    emulator.take_launches()
    on(machine, problem, "points")
    return [launch.kernel for launch in emulator.take_launches()]


def test_bins_are_taken_for_many_samples() -> None:
    few = draw("points", [(3, 3, 3)], num_queries=20, num_points=12)  # 240 samples, 64 bins
    many = draw("points", [(3, 3, 3)], num_queries=22, num_points=12)  # 264
    assert not any("bin_backward" in kernel for kernel in _launches(emulated.PLAIN, few))
    chosen = _launches(emulated.PLAIN, many)
    assert [
        next(name for name in names if name in kernel)
        for kernel, names in zip(
            chosen,
            (
                *(["forward"], ["zero"], ["count"], ["reserve"], ["fill"], ["bin_backward"]),
                ["finish"],
            ),
            strict=True,
        )
    ]
    forced = Machine(tuning={"backward_bins": 0})
    assert not any("bin_backward" in kernel for kernel in _launches(forced, many))


def test_the_threshold_can_be_moved() -> None:
    problem = draw("points", [(3, 3, 3)], num_queries=16, num_points=12)  # 192 samples, 64 bins
    for tuning, taken in (
        ({}, False),
        ({"samples_per_bin": 3}, True),
        ({"samples_per_bin": 4}, False),
        ({"samples_per_bin": 3, "backward_bins": 0}, False),
        ({"samples_per_bin": 4, "backward_bins": 1}, True),
    ):
        kernels = _launches(Machine(tuning=tuning), problem)
        assert any("bin_backward" in kernel for kernel in kernels) == taken


def test_workspace_bounds_the_heads_of_a_chunk() -> None:
    problem = draw("points", batch=2, num_heads=3)
    for memory, chunks in ((0, 6), (1 << 26, 1)):
        machine = Machine(tuning={"backward_bins": 1, "workspace_bytes": memory})
        kernels = _launches(machine, problem)
        assert sum("bin_backward" in kernel for kernel in kernels) == chunks


def test_value_that_asks_for_nothing_needs_no_bins() -> None:
    problem = make_problem()
    args = [arg.detach() if isinstance(arg, Tensor) else arg for arg in problem.from_offsets]
    args[3].requires_grad_()
    emulator = emulated.PLAIN.emulator
    with on_machine(FIXED):
        out = on_emulator("points")(*args)
        emulator.take_launches()
        torch.autograd.grad(out, args[3], problem.grad_out)
    assert not any("bin" in launch.kernel for launch in emulator.take_launches())


def test_unknown_tuning_is_refused() -> None:
    with pytest.raises(RuntimeError, match='no tuning "brick"'):
        on(Machine(tuning={"brick": 1}), draw("points"), "points")
