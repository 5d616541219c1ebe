"""The CUDA backward by bins, on the processor: forced on small problems, and when it is chosen."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from stdeform.testing import Problem
from tests.cuda.emulator import emulated
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import LIFO, Schedule
from tests.cuda.emulator.problems import WAYS, in_one_bin
from tests.support.backends import on_emulator, on_machine
from tests.support.cases import (
    DTYPES,
    FORMS,
    arguments,
    asking,
    check_against_baseline,
    draw,
    gradients,
    tensors,
)

BY_BINS = {name: way for name, way in WAYS.items() if name != "direct"}
MULTIPROCESSORS = (1, 4, 132)
RANDOM = Schedule("random", seed=3)


def on(machine: Machine, problem: Problem, form: str) -> tuple[Tensor, ...]:
    """The gradients of a problem as a machine computes them."""
    with on_machine(machine):
        return gradients(problem, form, "emulated")


@pytest.mark.parametrize("way", BY_BINS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results(dtype: str, form: str, way: str) -> None:
    value, side = DTYPES[dtype]
    with on_machine(BY_BINS[way]):
        problem = draw(form, head_dim=48, dtype=value, side_dtype=side)
        check_against_baseline(problem, form, "emulated")


@pytest.mark.parametrize("way", BY_BINS)
@pytest.mark.parametrize("num_queries", [1, 10, 11, 22, 40, 130])
def test_sizes_of_a_bin(num_queries: int, way: str) -> None:
    # With 3 points: around the 32 samples that a warp describes at a time, and the 128 of a warp.
    with on_machine(BY_BINS[way]):
        check_against_baseline(in_one_bin(num_queries, head_dim=32), "points", "emulated")


@pytest.mark.parametrize("way", BY_BINS)
@pytest.mark.parametrize("form", FORMS)
def test_coordinates_that_read_nothing(form: str, way: str) -> None:
    problem = draw(form)
    positions = "sampling_locations" if form == "locations" else "sampling_offsets"
    odd = getattr(problem, positions).clone()
    for i, x in enumerate((torch.nan, torch.inf, -torch.inf, 6e4, -6e4)):
        odd.view(-1)[i::11] = x
    problem = dataclasses.replace(problem, **{positions: odd})
    direct = on(emulated.PLAIN, problem, form)
    for one, other in zip(on(BY_BINS[way], problem, form), direct, strict=True):
        # Float32 sums of about a hundred terms, in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.isfinite().all()


@pytest.mark.parametrize("way", BY_BINS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_that_are_requested_alone(form: str, way: str) -> None:
    problem = draw(form)
    every = on(emulated.PLAIN, problem, form)
    for chosen in itertools.product((False, True), repeat=len(every) - 1):
        wanted = (True, *chosen)
        args = asking(arguments(problem, form), wanted)
        requested = [tensor for tensor in tensors(args) if tensor.requires_grad]
        with on_machine(BY_BINS[way]):
            grads = torch.autograd.grad(on_emulator(form)(*args), requested, problem.grad_out)
        for one, other in zip(grads, itertools.compress(every, wanted), strict=True):
            # Float32 sums of about a hundred terms, in another order.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# -- the order of sums -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "form"), [("f32", "points"), ("f64", "locations"), ("bf16", "boxes")]
)
def test_deterministic_sums_have_one_order(dtype: str, form: str) -> None:
    fixed = WAYS["fixed"]
    machines = [
        *(dataclasses.replace(fixed, schedule=schedule) for schedule in (LIFO, RANDOM)),
        *(dataclasses.replace(fixed, multiprocessors=number) for number in MULTIPROCESSORS),
        dataclasses.replace(fixed, schedule=RANDOM, tuning={"workspace_bytes": 0}),
        dataclasses.replace(fixed, tuning={"samples_per_warp": 5}),
        dataclasses.replace(fixed, tuning={"backward_bins": 0}),
    ]
    settings = {"dtype": DTYPES[dtype][0], "head_dim": 48}
    # In bins of 30 samples, of 144 tiles for up to 132 multiprocessors, and in one of 600.
    for problem in (
        draw(form, [(2, 3, 3)], num_queries=180, **settings),
        in_one_bin(200, **settings),
    ):
        first = on(fixed, problem, form)
        for machine in machines:
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
    first, *rest = on(WAYS["bins"], problem, "points")
    machines = [dataclasses.replace(WAYS["bins"], schedule=each) for each in (LIFO, RANDOM)]
    found = [on(machine, problem, "points") for machine in machines]
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
    for problem, tuning, taken in (
        (few, {}, False),
        (many, {}, True),
        (many, {"backward_bins": 0}, False),
        (few, {"samples_per_bin": 3}, True),
    ):
        kernels = _launches(Machine(tuning=tuning), problem)
        names = ["forward", "zero", "backward"]
        if taken:
            names = ["forward", "zero", "count", "reserve", "fill", "bin_backward", "finish"]
        assert len(kernels) == len(names)
        assert all(name in kernel for name, kernel in zip(names, kernels, strict=True))


def test_workspace_bounds_the_heads_of_a_chunk() -> None:
    problem = draw("points", batch=2, num_heads=3)
    for memory, chunks in ((0, 6), (1 << 26, 1)):
        machine = Machine(tuning={"backward_bins": 1, "workspace_bytes": memory})
        kernels = _launches(machine, problem)
        assert sum("bin_backward" in kernel for kernel in kernels) == chunks
