"""The simulated L1 of the CUDA forward, on cases that can be counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import compiled
from benchmarks.__main__ import main
from benchmarks.cache_order import ORDERS, Order, miss_rate
from benchmarks.traffic import corner_bytes, corner_table
from benchmarks.workloads import WORKLOADS, make_inputs

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
# Rows of 64 bytes: two sectors each.
TINY = WORKLOADS["tiny"]


def test_a_cache_that_holds_everything_misses_once() -> None:
    rows = corner_table(TINY, make_inputs(TINY, 0), 0, 0)
    different = len(rows[rows >= 0].unique())
    for order in ORDERS.values():
        rate = miss_rate(TINY, order, multiprocessors=1)
        assert rate == pytest.approx(different / int((rows >= 0).sum()))


def test_every_multiprocessor_has_to_fetch_for_itself() -> None:
    # Each of as many multiprocessors as there are tiles: nothing is read twice but within a tile.
    whole = miss_rate(TINY, Order(), multiprocessors=1)
    shared = miss_rate(TINY, Order(), multiprocessors=12)
    assert shared > 2 * whole


def test_a_cache_of_one_line_keeps_nothing() -> None:
    # Two rows of 64 bytes share a line; hardly ever is the next one read in it.
    assert miss_rate(TINY, Order(), multiprocessors=1, cache_bytes=128) > 0.7


def test_bricks_of_the_whole_level_are_the_plain_order() -> None:
    plain, whole = (miss_rate(TINY, Order(brick)) for brick in ((0, 0, 0), (5, 6, 4)))
    assert plain == whole


def test_neighbours_share_more_than_what_is_dealt_out() -> None:
    workload = dataclasses.replace(WORKLOADS["paper-encoder"], spatial_shapes=((12, 10, 17),))
    assert corner_bytes(workload, make_inputs(workload, 0)) > 0
    dealt, runs, bricks = (
        miss_rate(workload, ORDERS[name], multiprocessors=44, cache_bytes=100 << 10)
        for name in ("dealt out", "runs", "bricks 5x5x9")
    )
    assert bricks < runs < dealt


def test_bricks_and_warps_are_those_of_the_kernels() -> None:
    folder = Path(__file__).parents[1] / "csrc/cuda"
    assert f"kForwardWarps = {Order().warps};" in (folder / "layout.cuh").read_text()
    chosen = (folder / "choose_order.h").read_text()
    for name, brick in (("kBrick", "bricks 5x5x9"), ("kImageBrick", "bricks 16x16x1")):
        cells = ", ".join(map(str, ORDERS[brick].brick))
        assert f"{name}[kMaxAxes] = {{{cells}}};" in chosen


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache-order", "--workloads", "tiny", "--spreads", "2"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|") == len(ORDERS) + 3
