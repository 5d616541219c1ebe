"""What the CUDA operator chooses by itself, at the sizes that it is made for.

Nothing is launched but in the last test: the host code of csrc/cuda/ alone is asked.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

import pytest
import torch

from benchmarks import additions
from benchmarks.workloads import WORKLOADS, Workload
from tests.cases import draw, forward
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.emulated import Machine
from tests.elsewhere import on_machine

MULTIPROCESSORS = 132  # of an H100 or H200, with twelve warps each in the forward
ENCODER, DECODER = WORKLOADS["paper-encoder"], WORKLOADS["paper-decoder"]
PLAIN = (0, 0, 0)


@functools.cache
def _choices() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.library([build.HERE / "choices.cpp"])))
    library.chosen_bins.restype = ctypes.c_bool
    return library


def _sizes(workload: Workload) -> Any:
    """The letters N, B, S, M, D, Q, L, K."""
    num_levels, num_axes = len(workload.spatial_shapes), len(workload.spatial_shapes[0])
    return (ctypes.c_int64 * 8)(
        *(num_axes, workload.batch, workload.num_cells, workload.num_heads, workload.head_dim),
        *(workload.num_queries, num_levels, workload.num_points),
    )


def order(
    workload: Workload, multiprocessors: int = MULTIPROCESSORS
) -> tuple[tuple[int, ...], int]:
    """Cells of a brick along x, y, t, or `PLAIN`; and warps that share a tile."""
    out = (ctypes.c_int32 * 5)()
    _choices().chosen_order(_sizes(workload), ctypes.c_int(multiprocessors), out)
    in_bricks, *brick, parts = out
    return tuple(brick) if in_bricks else PLAIN, parts


def takes_bins(
    workload: Workload, *, wants_value: bool = True, samples_per_bin: int | None = None
) -> bool:
    """Whether the backward works bin by bin; None leaves the threshold to it."""
    shapes = [size for row in workload.spatial_shapes for size in row]
    return bool(
        _choices().chosen_bins(
            _sizes(workload),
            (ctypes.c_int64 * len(shapes))(*shapes),
            ctypes.c_bool(wants_value),
            ctypes.c_int64(-1 if samples_per_bin is None else samples_per_bin),
        )
    )


def asking(num_queries: int, **changes: Any) -> Workload:
    """The paper's decoder with other numbers of queries, points, ..."""
    return dataclasses.replace(DECODER, num_object_queries=num_queries, **changes)


# -- the forward's order ---------------------------------------------------------------------------


def test_the_papers_sizes() -> None:
    assert (ENCODER.num_queries, ENCODER.num_cells, DECODER.num_queries) == (6120, 6120, 360)
    assert {ENCODER.num_heads, DECODER.num_heads} == {8}
    assert order(ENCODER) == ((5, 5, 9), 1)
    assert order(DECODER) == (PLAIN, 2)


def test_a_query_for_every_cell_means_bricks() -> None:
    assert order(WORKLOADS["paper-encoder-large"]) == ((5, 5, 9), 1)
    assert order(WORKLOADS["detr-encoder"]) == ((16, 16, 1), 1)
    for num_queries in (6119, 6121):
        assert order(asking(num_queries)) == (PLAIN, 1)
    assert order(asking(6120)) == order(ENCODER)


@pytest.mark.parametrize(
    ("num_queries", "parts"), [(1, 4), (245, 4), (246, 2), (495, 2), (496, 1), (6000, 1)]
)
def test_warps_share_tiles_while_there_are_enough_of_them(num_queries: int, parts: int) -> None:
    # Of five queries of a head each: 8 * 49 tiles leave four warps to each of 132 * 12, 8 * 50 do
    # not; 8 * 99 leave two.
    assert order(asking(num_queries)) == (PLAIN, parts)


@pytest.mark.parametrize(("multiprocessors", "parts"), [(95, 1), (96, 2), (191, 2), (192, 4)])
def test_larger_devices_share_more(multiprocessors: int, parts: int) -> None:
    # The decoder has 8 * 72 tiles.
    assert order(DECODER, multiprocessors) == (PLAIN, parts)


@pytest.mark.parametrize(
    ("num_levels", "num_points", "parts"),
    [(1, 6, 1), (1, 7, 2), (1, 18, 2), (1, 19, 4), (2, 6, 2), (3, 6, 2), (4, 6, 4), (4, 1, 4)],
)
def test_every_part_has_samples_to_read(num_levels: int, num_points: int, parts: int) -> None:
    # A warp with five rows reads six samples of each at a time, of one level.
    levels = ((36, 10, 17),) * num_levels
    assert order(asking(10, spatial_shapes=levels, num_points=num_points)) == (PLAIN, parts)


# -- the backward by bins --------------------------------------------------------------------------


def test_the_benchmark_knows_what_is_chosen() -> None:
    for workload in WORKLOADS.values():
        assert additions.takes_bins(workload) == takes_bins(workload)
    for num_queries in (915, 916):
        assert additions.takes_bins(asking(num_queries)) == takes_bins(asking(num_queries))


def test_bins_serve_encoders() -> None:
    for name in ("paper-encoder", "paper-encoder-large", "detr-encoder"):
        assert takes_bins(WORKLOADS[name])
    assert not takes_bins(DECODER)
    assert not takes_bins(ENCODER, wants_value=False)


@pytest.mark.parametrize(("num_points", "num_queries"), [(1, 4 * 7326), (4, 7326), (32, 916)])
def test_bins_are_taken_from_four_samples_on(num_points: int, num_queries: int) -> None:
    # The level has 37 * 11 * 18 = 7326 bins; other heads and batch rows have bins of their own.
    for num_heads, batch in ((8, 1), (1, 64)):
        settings = {"num_points": num_points, "num_heads": num_heads, "batch": batch}
        assert takes_bins(asking(num_queries, **settings))
        assert not takes_bins(asking(num_queries - 1, **settings))


@pytest.mark.parametrize("samples_per_bin", [1, 3, 5, 26])
def test_another_threshold(samples_per_bin: int) -> None:
    enough = asking(7326 * samples_per_bin, num_points=1)
    few = asking(7326 * samples_per_bin - 1, num_points=1)
    assert takes_bins(enough, samples_per_bin=samples_per_bin)
    assert not takes_bins(few, samples_per_bin=samples_per_bin)


def test_a_threshold_of_nothing_takes_bins_for_all() -> None:
    assert takes_bins(asking(1, num_points=1), samples_per_bin=0)


def test_samples_are_numbered_by_32_bits() -> None:
    assert takes_bins(asking(2**26 - 1))
    assert not takes_bins(asking(2**26))


# -- and what is launched --------------------------------------------------------------------------


def test_the_forward_follows_its_choice() -> None:
    # Tiles for a quarter of the emulator's four times twelve warps, and samples for each.
    problem = draw("points", num_queries=15, num_points=33, head_dim=48)
    found = {}
    for parts in (-1, 1, 2, 4):
        with on_machine(Machine(tuning={"forward_parts": parts})):
            found[parts] = forward(problem, "points", "emulated")
    assert torch.equal(found[-1], found[4])
    assert not torch.equal(found[-1], found[1])
    assert not torch.equal(found[-1], found[2])
