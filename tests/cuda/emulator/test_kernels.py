"""What the emulator alone can ask of the CUDA kernels: races, bounds, orders of threads, launches.

Their results on plain problems are tested with all backends, as "emulated".
"""

from __future__ import annotations

import itertools
import re

import pytest

from stdeform.testing import Layout
from tests.cuda.emulator import build, problems
from tests.cuda.emulator.emulated import Machine
from tests.cuda.emulator.emulator import Schedule
from tests.support.backends import on_machine
from tests.support.cases import DTYPES, IMAGE, check_against_baseline, draw

TRIALS = {trial.label: trial for trial in problems.trials()}


@pytest.mark.parametrize("label", TRIALS)
def test_every_access_is_checked(label: str) -> None:
    """Races, bounds, alignment, undefined behaviour, and results in an order of threads."""
    schedule = Schedule("random", seed=2, preempt_one_in=20)
    TRIALS[label].check(variant=build.CHECKED, schedule=schedule, side="start")


@pytest.mark.parametrize("num_points", [1, 2, 7, 8, 9, 31, 33])
def test_numbers_of_points(num_points: int) -> None:
    # Around the numbers that a warp reads at a time.
    for head_dim, form in itertools.product((16, 48, 7), ("points", "boxes")):
        check_against_baseline(
            draw(form, num_points=num_points, num_queries=3, head_dim=head_dim), form, "emulated"
        )


@pytest.mark.parametrize("num_queries", [1, 5, 6, 16, 17, 65, 80, 81, 700])
def test_numbers_of_queries(num_queries: int) -> None:
    # Around the queries of a tile, and of a block; and more than four blocks do at once.
    for head_dim, batch, num_heads in ((48, 1, 1), (16, 3, 2), (7, 2, 1)):
        sizes = {"num_queries": num_queries, "batch": batch, "num_heads": num_heads}
        problem = draw("points", IMAGE, head_dim=head_dim, **sizes)
        check_against_baseline(problem, "points", "emulated")


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
    problem = draw("points", head_dim=48, dtype=DTYPES[dtype][0]).laid_out(layout)
    machine.emulator.take_launches()
    with on_machine(machine):
        check_against_baseline(problem, "points", "emulated")
    launchers = [launch.launcher for launch in machine.emulator.take_launches()]
    found = {row for text in launchers for row in re.findall(r"RowLayout<([^<>]*)>", text)}
    expected = VECTORS[dtype] if vectors else ELEMENTS
    assert found == {expected["forward"], expected[way]}
