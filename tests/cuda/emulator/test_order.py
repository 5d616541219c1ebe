"""The schedule of the CUDA forward, emulated: bricks, ranges of tiles, tiles shared by warps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from stdeform.testing import Problem, assert_close
from tests.cuda.emulator import emulated
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import FIFO, LIFO, Schedule
from tests.support.backends import on_machine
from tests.support.cases import DTYPES, check_against_baseline, draw, forward, gradients

# Levels that no brick divides.
VIDEO = ((3, 5, 7), (2, 3, 4))
IMAGE = ((9, 7), (3, 4))
# The kernels treat the two one after the other.
DTYPES_AND_FORMS = [("f64", "locations"), ("f32", "points"), ("bf16", "boxes")]


def on(machine: Machine, problem: Problem, form: str) -> Tensor:
    """The result as a machine computes it."""
    with on_machine(machine):
        return forward(problem, form, "emulated")


@pytest.mark.parametrize(("dtype", "form"), DTYPES_AND_FORMS)
def test_bricks_change_no_bit(dtype: str, form: str) -> None:
    for shapes, head_dim in itertools.product((VIDEO, IMAGE), (48, 5)):
        # A query for every cell.
        settings = {"num_queries": sum(map(math.prod, shapes)), "num_points": 7}
        problem = draw(form, shapes, head_dim=head_dim, dtype=DTYPES[dtype][0], **settings)
        plain = on(Machine(tuning={"forward_bricks": 0, "forward_splits": 1}), problem, form)
        for brick in (-1, 1, 2, 3, 100):
            tuning = {"forward_bricks": brick, "forward_splits": 1}
            assert torch.equal(on(Machine(tuning=tuning), problem, form), plain)
        exact = forward(problem.to(torch.float64), form, "baseline")
        assert_close(plain, exact, "forward")


@pytest.mark.parametrize("splits", [(1, 1), (2, 2), (5, 3), (16, 4)], ids=str)
@pytest.mark.parametrize(("dtype", "form"), DTYPES_AND_FORMS)
def test_warps_that_share_tiles(dtype: str, form: str, splits: tuple[int, int]) -> None:
    tuning = dict(zip(("forward_splits", "backward_splits"), splits, strict=True))
    machine = Machine(tuning={"backward_bins": 0, **tuning})
    # Fewer samples than splits, more, and channels that take several passes.
    for num_points, head_dim, num_queries in ((1, 16, 3), (33, 48, 7), (9, 130, 1)):
        sizes = {"num_points": num_points, "head_dim": head_dim, "num_queries": num_queries}
        problem = draw(form, dtype=DTYPES[dtype][0], **sizes)
        with on_machine(machine):
            check_against_baseline(problem, form, "emulated")
        # All sums but those of the value's gradient have one order, whatever the threads'.
        found = []
        for schedule in (FIFO, LIFO, Schedule("random", seed=5)):
            with on_machine(dataclasses.replace(machine, schedule=schedule)):
                _, *grads = gradients(problem, form, "emulated")
                found.append([forward(problem, form, "emulated"), *grads])
        first, *others = found
        assert all(all(map(torch.equal, other, first)) for other in others)


@pytest.mark.parametrize("num_queries", [4, 5, 6, 79, 80, 81])
def test_numbers_of_queries(num_queries: int) -> None:
    # Around the queries of a tile and of a step of a block.
    problem = draw("points", num_queries=num_queries, head_dim=48, batch=1, num_heads=1)
    check_against_baseline(problem, "points", "emulated")


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


@pytest.mark.parametrize(("dtype", "form"), DTYPES_AND_FORMS)
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
