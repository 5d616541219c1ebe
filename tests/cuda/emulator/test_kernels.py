"""What the emulator alone can ask of the CUDA kernels: orders of threads, guards, races, launches.

Their results on plain problems are tested with all backends, as "emulated".
"""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from stdeform.testing import Layout
from tests.cuda.emulator import build, emulated
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import FIFO, LIFO, Schedule
from tests.support.backends import on_machine
from tests.support.cases import (
    DTYPES,
    FORMS,
    IMAGE,
    VIDEO,
    check_against_baseline,
    draw,
    forward,
    gradients,
)

MACHINES = {
    "lifo": Machine(schedule=LIFO, side="start"),
    "random": Machine(schedule=Schedule("random", seed=1)),
    "checked": Machine(build.CHECKED),
    "checked-start": Machine(build.CHECKED, side="start"),
    "preempted": Machine(build.CHECKED, Schedule("random", seed=2, preempt_one_in=20)),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_machines(dtype: str, machine: str) -> None:
    with on_machine(MACHINES[machine]):
        for head_dim, form in itertools.product((5, 16, 48), FORMS):
            axes = IMAGE if form == "points" else VIDEO
            check_against_baseline(
                draw(form, axes, head_dim=head_dim, dtype=DTYPES[dtype][0]), form, "emulated"
            )


@pytest.mark.parametrize("num_points", [1, 2, 7, 8, 9, 31, 33])
def test_numbers_of_points(num_points: int) -> None:
    # Around the numbers that a warp reads at a time.
    for head_dim, form in itertools.product((16, 48, 7), ("points", "boxes")):
        check_against_baseline(
            draw(form, num_points=num_points, num_queries=3, head_dim=head_dim), form, "emulated"
        )


@pytest.mark.parametrize("num_queries", [1, 2, 15, 16, 17, 65])
def test_numbers_of_queries(num_queries: int) -> None:
    # Around the rows of a warp and of a block.
    for head_dim in (16, 48, 7):
        check_against_baseline(
            draw("points", IMAGE, num_queries=num_queries, head_dim=head_dim), "points", "emulated"
        )


def test_orders_agree() -> None:
    # Only additions to the value's gradient may come in another order.
    problem = draw("boxes", VIDEO)
    results = []
    for schedule in (FIFO, LIFO, Schedule("random", seed=4)):
        with on_machine(Machine(schedule=schedule)):
            _, *grads = gradients(problem, "boxes", "emulated")
            results.append([forward(problem, "boxes", "emulated"), *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# -- launches ------------------------------------------------------------------------------------


def test_launches_are_on_the_queue_that_was_named() -> None:
    emulator = emulated.PLAIN.emulator
    problem = draw("points")
    emulator.take_launches()
    for device, stream in ((0, 0), (1, 16), (0, 24)):
        with on_machine(Machine(device=device, stream=stream)):
            gradients(problem, "points", "emulated")
        launches = emulator.take_launches()
        assert [(launch.device, launch.stream) for launch in launches] == [(device, stream)] * 3
        for launch, name in zip(launches, ("forward", "zero", "backward"), strict=True):
            assert name in launch.kernel


def test_a_device_that_is_not_there() -> None:
    problem = draw("points")
    with (
        on_machine(Machine(device=7)),
        pytest.raises(RuntimeError, match=r"invalid device ordinal \(B = 2, Q = 7, S = 138, "),
    ):
        forward(problem, "points", "emulated")
    emulator = emulated.PLAIN.emulator
    emulator.take_launches()
    forward(problem, "points", "emulated")
    assert [launch.device for launch in emulator.take_launches()] == [0]


def test_too_many_levels_are_refused() -> None:
    problem = draw("points", [(1, 1)] * 65)
    with pytest.raises(RuntimeError, match="at most 64 levels, got L = 65"):
        forward(problem, "points", "emulated")


# Of 48 channels: lanes of a row, runs of a lane, channels of a run, whether they cover the row.
VECTORS = {
    "f32": {"forward": "6, 2, 4, true", "direct": "6, 2, 4, true", "bins": "4, 3, 4, true"},
    "bf16": {"forward": "6, 1, 8, true", "direct": "6, 2, 4, true", "bins": "4, 3, 4, true"},
}
ELEMENTS = {"forward": "32, 4, 1, false", "direct": "32, 4, 1, false", "bins": "4, 8, 1, false"}


@pytest.mark.parametrize(
    ("layout", "vectors"), [("contiguous", True), ("heads first", True), ("padded", False)]
)
@pytest.mark.parametrize("way", ["direct", "bins"])
@pytest.mark.parametrize("dtype", VECTORS)
def test_aligned_rows_are_read_in_vectors(
    dtype: str, way: str, layout: Layout, vectors: bool
) -> None:
    machine = Machine(tuning={"backward_bins": way == "bins"})
    for form in FORMS:
        problem = draw(form, head_dim=48, dtype=DTYPES[dtype][0]).laid_out(layout)
        machine.emulator.take_launches()
        with on_machine(machine):
            check_against_baseline(problem, form, "emulated")
        launchers = [launch.launcher for launch in machine.emulator.take_launches()]
        found = {row for text in launchers for row in re.findall(r"RowLayout<([^<>]*)>", text)}
        expected = VECTORS[dtype] if vectors else ELEMENTS
        assert found == {expected["forward"], expected[way]}


# -- under sanitizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [build.ADDRESS, build.THREAD], ids=lambda v: v.name)
def test_sanitizers(variant: build.Variant) -> None:
    program = build.program([*emulated.sources(), build.HERE / "operator_main.cpp"], variant)
    done = build.run(program)
    assert not done.stderr
    assert done.stdout == "146 problems, 0 failures\n"
