"""The simulated L1 of the CUDA forward, on cases that can be counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.costs.cache_sim import (
    ORDERS,
    Order,
    miss_rate,
    orders_for,
    rows_of_heads,
)
from benchmarks.costs.traffic import corner_table
from benchmarks.measure import compiled
from benchmarks.workloads import WORKLOADS, make_inputs

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
# Rows of 64 bytes: two sectors each.
TINY = WORKLOADS["tiny"]
ROWS = rows_of_heads(TINY)


def test_every_head_has_its_own_samples() -> None:
    inputs = make_inputs(TINY, 0)
    assert len(ROWS) == TINY.num_heads
    for head, rows in enumerate(ROWS):
        assert rows.equal(corner_table(TINY, inputs, 0, head))
    assert not ROWS[0].equal(ROWS[1])


def test_a_cache_that_holds_everything_misses_once() -> None:
    different = sum(len(rows[rows >= 0].unique()) for rows in ROWS)
    for order in ORDERS.values():
        rate = miss_rate(TINY, order, ROWS, multiprocessors=1)
        assert rate == pytest.approx(different / int((ROWS >= 0).sum()))


def test_all_of_the_work_is_simulated() -> None:
    # The first head reads one row again and again, the second one nothing twice; a multiprocessor
    # has one of them.
    one_query = dataclasses.replace(TINY, num_object_queries=1, num_points=12)
    rows = torch.zeros(2, 1, 12, 8, dtype=torch.int32)
    rows[1] = torch.arange(96).view(1, 12, 8)
    rate = miss_rate(one_query, Order(), rows, multiprocessors=2)
    assert rate == pytest.approx((1 + 96) / (96 + 96))


def test_rows_that_do_not_exist_are_not_read() -> None:
    rows = torch.full_like(ROWS, -1)
    rows[-1, -1, -1, -1] = 0
    assert miss_rate(TINY, Order(), rows) == 1


def test_every_multiprocessor_has_to_fetch_for_itself() -> None:
    # Each of as many multiprocessors as there are tiles: nothing is read twice but within a tile.
    whole = miss_rate(TINY, Order(), ROWS, multiprocessors=1)
    shared = miss_rate(TINY, Order(), ROWS, multiprocessors=12)
    assert shared > 2 * whole


def test_a_cache_of_one_line_keeps_nothing() -> None:
    # Two rows of 64 bytes share a line; hardly ever is the next one read in it.
    assert miss_rate(TINY, Order(), ROWS, multiprocessors=1, cache_bytes=128) > 0.7


def test_bricks_of_the_whole_level_are_the_plain_order() -> None:
    plain, whole = (miss_rate(TINY, Order(brick), ROWS) for brick in ((0, 0, 0), (5, 6, 4)))
    assert plain == whole


def test_neighbours_share_more_than_what_is_dealt_out() -> None:
    workload = dataclasses.replace(WORKLOADS["paper-encoder"], spatial_shapes=((12, 10, 17),))
    rows = rows_of_heads(workload)
    dealt, runs, bricks = (
        miss_rate(workload, ORDERS[name], rows, multiprocessors=44, cache_bytes=100 << 10)
        for name in ("dealt out", "runs", "bricks 5x5x9")
    )
    assert bricks < runs < dealt


def test_bricks_and_warps_are_those_of_the_kernels() -> None:
    folder = Path(__file__).parents[3] / "csrc/cuda"
    assert f"kForwardWarps = {Order().warps};" in (folder / "params.h").read_text()
    chosen = (folder / "schedule.h").read_text()
    for name, brick in (("kBrick", "bricks 5x5x9"), ("kImageBrick", "bricks 16x16x1")):
        cells = ", ".join(map(str, ORDERS[brick].brick))
        assert f"{name}[kMaxAxes] = {{{cells}}};" in chosen


def test_bricks_are_of_cells_that_ask() -> None:
    assert list(orders_for(WORKLOADS["detr-encoder"])) == list(ORDERS)
    assert list(orders_for(WORKLOADS["paper-decoder"])) == ["dealt out", "runs"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workloads", "tiny", "paper-decoder", "--spreads", "2", "uniform"]
    assert main(["costs", "l1-misses", *words]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.count("|") for row in rows] == [header.count("|")] * 4 == [len(ORDERS) + 3] * 4
    assert rows[1].startswith("| tiny, float32 | uniform | ")
    assert rows[-1].endswith("- | - | - | - |")  # queries that are no cells have no bricks
