"""What the CUDA operator chooses by itself, at the sizes that it is made for.

Only the last test launches kernels: the others call the host code of csrc/cuda/ alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

import pytest
import torch

from benchmarks.costs import traffic
from benchmarks.workloads import WORKLOADS, Workload
from tests.cuda.emulator import build
from tests.cuda.emulator.emulated import Machine
from tests.support.backends import on_machine
from tests.support.cases import draw, forward

WARPS = 16  # of a block of the forward
ENCODER, DECODER = WORKLOADS["paper-encoder"], WORKLOADS["paper-decoder"]
PLAIN = (0, 0, 0)


@functools.cache
def _choices() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.library([build.HERE / "choices.cpp"])))
    library.chosen_bins.restype = library.aligned_rows.restype = ctypes.c_bool
    return library


def _sizes(workload: Workload) -> Any:
    """The letters N, B, S, M, D, Q, L, P."""
    num_levels, num_axes = len(workload.spatial_shapes), len(workload.spatial_shapes[0])
    return (ctypes.c_int64 * 8)(
        *(num_axes, workload.batch, workload.num_cells, workload.num_heads, workload.head_dim),
        *(workload.num_queries, num_levels, num_levels * workload.num_points),
    )


def schedule(workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cells of a brick along x, y, t, or `PLAIN`; warps of a tile, for each number that is left."""
    out = (ctypes.c_int32 * (4 + WARPS + 1))()
    _choices().chosen_schedule(_sizes(workload), out)
    in_bricks, *rest = out
    return tuple(rest[:3]) if in_bricks else PLAIN, tuple(rest[4:])


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


# -- the forward's schedule ------------------------------------------------------------------------


def test_the_papers_sizes() -> None:
    assert schedule(ENCODER)[0] == (5, 5, 9)
    assert schedule(DECODER)[0] == PLAIN


def test_a_query_for_every_cell_means_bricks() -> None:
    assert schedule(WORKLOADS["paper-encoder-large"])[0] == (5, 5, 9)
    assert schedule(WORKLOADS["detr-encoder"])[0] == (16, 16, 1)
    for num_queries in (6119, 6121):
        assert schedule(asking(num_queries))[0] == PLAIN
    assert schedule(asking(6120)) == schedule(ENCODER)


def _steps(left: int, splits: tuple[int, ...], of_a_tile: int) -> int:
    """Steps until that many tiles are done; each has `of_a_tile`, and costs each warp one more."""
    steps = 0
    while left > 0:
        sharing = splits[min(left, WARPS) - 1]
        steps += -(-of_a_tile // sharing) + 1
        left -= WARPS // sharing
    return steps


@pytest.mark.parametrize("num_points", [1, 6, 7, 18, 32])
def test_warps_share_what_is_left(num_points: int) -> None:
    # A warp with five rows reads six samples of each in a step.
    of_a_tile = -(-num_points // 6)
    _, splits = schedule(asking(10, num_points=num_points))
    assert splits[-1] == 1  # nothing is gained while there is a tile for every warp

    @functools.cache
    def fewest(left: int) -> int:
        """Steps, when every tile may be shared by any number of warps."""
        if left <= 0:
            return 0
        sharing = range(1, WARPS + 1)
        return min(-(-of_a_tile // warps) + 1 + fewest(left - WARPS // warps) for warps in sharing)

    for left in range(1, WARPS):
        assert _steps(left, splits, of_a_tile) == fewest(left)
    if num_points == 32:  # of the encoder's 74 or 75 tiles of a block 10 or 11 are left, of 6 steps
        assert (splits[10 - 1], splits[2 - 1]) == (2, 6)
        assert splits[11 - 1] == 1


def test_every_part_has_samples_to_read() -> None:
    for num_levels, num_points, most in ((1, 6, 1), (1, 7, 2), (2, 6, 2), (3, 1, 3), (4, 32, 16)):
        levels = ((36, 10, 17),) * num_levels
        _, splits = schedule(asking(10, spatial_shapes=levels, num_points=num_points))
        assert max(splits) <= most


# -- the layout of rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_strides_of_axes_of_size_one_are_ignored(axis: int) -> None:
    # Older versions of PyTorch hand over a stride of 1 for every axis of size 1.
    sizes, strides = [2, 5, 8], [5 * 8 * 48, 8 * 48, 48, 1]

    def aligned() -> bool:
        three, four = (ctypes.c_int64 * 3)(*sizes), (ctypes.c_int64 * 4)(*strides)
        return bool(_choices().aligned_rows(three, four))

    assert aligned()
    strides[axis] = 1
    assert not aligned()
    sizes[axis] = 1
    assert aligned()


# -- the backward by bins --------------------------------------------------------------------------


def test_the_benchmark_knows_what_is_chosen() -> None:
    for workload in WORKLOADS.values():
        assert traffic.takes_bins(workload) == takes_bins(workload)
    for num_queries in (915, 916):
        assert traffic.takes_bins(asking(num_queries)) == takes_bins(asking(num_queries))


def test_bins_serve_encoders() -> None:
    for name in ("paper-encoder", "paper-encoder-large", "detr-encoder"):
        assert takes_bins(WORKLOADS[name])
    assert not takes_bins(DECODER)
    assert not takes_bins(ENCODER, wants_value=False)


@pytest.mark.parametrize(
    ("num_points", "num_queries", "samples_per_bin"),
    [
        *((1, 4 * 7326, None), (4, 7326, None), (32, 916, None)),
        *((1, 7326, 1), (1, 3 * 7326, 3), (1, 26 * 7326, 26)),
    ],
)
def test_bins_are_taken_from_a_number_of_samples_on(
    num_points: int, num_queries: int, samples_per_bin: int | None
) -> None:
    # The level has 37 * 11 * 18 = 7326 bins; other heads and batch elements have bins of their own.
    for num_heads, batch in ((8, 1), (1, 64)):
        settings = {"num_points": num_points, "num_heads": num_heads, "batch": batch}
        for queries, taken in ((num_queries, True), (num_queries - 1, False)):
            found = takes_bins(asking(queries, **settings), samples_per_bin=samples_per_bin)
            assert found == taken


def test_a_threshold_of_nothing_takes_bins_for_all() -> None:
    assert takes_bins(asking(1, num_points=1), samples_per_bin=0)


def test_samples_are_numbered_by_32_bits() -> None:
    assert takes_bins(asking(2**26 - 1))
    assert not takes_bins(asking(2**26))


# -- and what is launched --------------------------------------------------------------------------


def test_the_forward_follows_its_choice() -> None:
    # Two heads of one tile for each of four blocks; six steps, so that six warps share it.
    problem = draw("points", [(4, 6, 5)], batch=1, num_queries=10, num_points=33, head_dim=48)
    found = {}
    for splits in (-1, 1, 2, 6):
        with on_machine(Machine(tuning={"forward_splits": splits})):
            found[splits] = forward(problem, "points", "emulated")
    assert torch.equal(found[-1], found[6])
    assert not torch.equal(found[-1], found[1])
    assert not torch.equal(found[-1], found[2])
