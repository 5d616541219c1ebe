"""The schedule of the CUDA forward, emulated: bricks, ranges of tiles, tiles shared by warps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stdeform.testing import Problem, assert_close
from tests.cuda.emulator import build, emulated
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import LIFO, Schedule
from tests.support.backends import on_machine
from tests.support.cases import DTYPES, FORMS, check_against_baseline, draw, forward, gradients

# Levels that no brick divides.
VIDEO = ((5, 7, 6), (2, 3, 4))
IMAGE = ((9, 7), (3, 4))
PLAIN = {"forward_bricks": 0, "forward_splits": 1}


def on_grid(form: str, shapes: Sequence[Sequence[int]], **settings: Any) -> Problem:
    """A problem with a query for every cell."""
    return draw(form, shapes, num_queries=sum(map(math.prod, shapes)), num_points=7, **settings)


def on(machine: Machine, problem: Problem, form: str) -> Tensor:
    """The result as a machine computes it."""
    with on_machine(machine):
        return forward(problem, form, "emulated")


def check(problem: Problem, form: str, machine: Machine) -> Tensor:
    """Compares the result with the grid_sample baseline in float64."""
    out = on(machine, problem, form)
    assert_close(out, forward(problem.to(torch.float64), form, "baseline"), "forward")
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_bricks_change_no_bit(dtype: str, form: str) -> None:
    for shapes, head_dim in itertools.product((VIDEO, IMAGE), (16, 48, 128, 5)):
        problem = on_grid(form, shapes, head_dim=head_dim, dtype=DTYPES[dtype][0])
        plain = check(problem, form, Machine(tuning=PLAIN))
        for brick in (1, 2, 3, 100):
            tuning = {"forward_bricks": brick, "forward_splits": 1}
            assert torch.equal(on(Machine(tuning=tuning), problem, form), plain)
        assert torch.equal(on(Machine(tuning={"forward_splits": 1}), problem, form), plain)


@pytest.mark.parametrize("splits", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_warps_that_share_tiles(dtype: str, form: str, splits: int) -> None:
    # Fewer samples than splits, more, and channels that take several passes.
    for num_points, head_dim, num_queries in ((1, 16, 3), (33, 48, 7), (9, 130, 1)):
        problem = draw(
            form, num_points=num_points, head_dim=head_dim, num_queries=num_queries,
            dtype=DTYPES[dtype][0],
        )  # fmt: skip
        machine = Machine(tuning={"forward_splits": splits})
        first = check(problem, form, machine)
        # Sums have one order, whatever the order of threads.
        for schedule in (LIFO, Schedule("random", seed=5)):
            again = on(dataclasses.replace(machine, schedule=schedule), problem, form)
            assert torch.equal(again, first)


@pytest.mark.parametrize("splits", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_warps_that_share_tiles_backward(dtype: str, form: str, splits: int) -> None:
    for num_points, head_dim, num_queries in ((1, 16, 3), (33, 48, 7), (9, 130, 1)):
        problem = draw(
            form, num_points=num_points, head_dim=head_dim, num_queries=num_queries,
            dtype=DTYPES[dtype][0],
        )  # fmt: skip
        machine = Machine(tuning={"backward_bins": 0, "backward_splits": splits})
        with on_machine(machine):
            check_against_baseline(problem, form, "emulated")
            _, *first = gradients(problem, form, "emulated")
        # All gradients but that of the value have one order, whatever the order of threads.
        for schedule in (LIFO, Schedule("random", seed=5)):
            with on_machine(dataclasses.replace(machine, schedule=schedule)):
                _, *again = gradients(problem, form, "emulated")
            assert all(map(torch.equal, again, first))


@pytest.mark.parametrize("splits", [1, 3])
def test_nothing_races_backward(splits: int) -> None:
    schedule = Schedule("random", 2, preempt_one_in=20)
    tuning = {"backward_bins": 0, "backward_splits": splits}
    with on_machine(Machine(build.CHECKED, schedule, tuning=tuning)):
        for form, head_dim in itertools.product(FORMS, (5, 48)):
            check_against_baseline(draw(form, head_dim=head_dim), form, "emulated")


@pytest.mark.parametrize("schedule", [LIFO, Schedule("random", 2, preempt_one_in=20)])
@pytest.mark.parametrize("splits", [1, 4])
def test_nothing_races(splits: int, schedule: Schedule) -> None:
    tuning = {"forward_bricks": 2, "forward_splits": splits}
    machine = Machine(build.CHECKED, schedule, tuning=tuning)
    for form, head_dim in itertools.product(FORMS, (5, 48)):
        check(on_grid(form, VIDEO, head_dim=head_dim), form, machine)


@pytest.mark.parametrize("num_queries", [1, 4, 5, 6, 79, 80, 81, 700])
def test_numbers_of_queries(num_queries: int) -> None:
    # Around the queries of a tile and of a step of a block; and more than four blocks do at once.
    for batch, num_heads in ((1, 1), (3, 2)):
        problem = draw(
            "points", num_queries=num_queries, head_dim=48, batch=batch, num_heads=num_heads
        )
        check(problem, "points", Machine())


# -- what is chosen --------------------------------------------------------------------------------


def test_no_more_blocks_than_multiprocessors() -> None:
    emulator = emulated.PLAIN.emulator
    for num_queries, multiprocessors, blocks in (
        (1, 1, 1), (1, 4, 2), (1, 132, 2), (1000, 1, 1), (1000, 4, 4), (1000, 132, 132)
    ):  # fmt: skip
        problem = draw("points", batch=1, num_queries=num_queries, head_dim=48)
        emulator.take_launches()
        on(Machine(multiprocessors=multiprocessors), problem, "points")
        (launch,) = emulator.take_launches()
        assert launch.grid == (blocks, 1, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_multiprocessors_change_no_bit(dtype: str, form: str) -> None:
    # With as many warps to a tile, which the number of multiprocessors would choose.
    problem = draw(form, num_queries=180, num_points=7, head_dim=48, dtype=DTYPES[dtype][0])
    for splits in (1, 2):
        tuning = {"forward_splits": splits}
        first, *others = (
            on(Machine(multiprocessors=number, tuning=tuning), problem, form)
            for number in (4, 1, 132)
        )
        assert all(torch.equal(other, first) for other in others)


def test_tuning_that_no_block_can_follow_is_refused() -> None:
    with pytest.raises(RuntimeError, match="at most 16 warps can share a tile, got 17"):
        on(Machine(tuning={"forward_splits": 17}), draw("points"), "points")
