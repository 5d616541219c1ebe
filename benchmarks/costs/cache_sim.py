"""L1 misses of the CUDA forward by order of work, simulated.

The rows that the samples of a workload read go through an LRU cache, in the order in which the
kernel's own index arithmetic (csrc/cuda/schedule.h) assigns queries to warps. Nothing is timed and
no GPU is needed: an order is chosen by its share of sector misses.
"""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.costs.traffic import corner_table
from benchmarks.measure import compiled
from benchmarks.workloads import DTYPES, Workload, make_inputs

_SOURCE = Path(__file__).with_name("cache_sim.cpp")
_MULTIPROCESSORS = 132  # of an H100 or H200
_CACHE_BYTES = 200 << 10  # of the 256 KiB that L1 and shared memory have together
_LANE_CHANNELS = 8  # channels of a lane
_NUMBERS = (  # fields of `Setting` in cache_sim.cpp after its three arrays
    *("N", "M", "row_bytes", "Q", "L", "samples"),
    *("warps", "rows_of_tile", "resident", "dealt", "multiprocessors", "cache_bytes"),
)


@dataclasses.dataclass(frozen=True)
class Order:
    """An order of work.

    Attributes:
        brick: Cells of a brick along x, y, t; zeros for the plain order of queries.
        warps: Of a block.
        resident: Blocks that a multiprocessor has at a time.
        dealt: Blocks of neighbouring queries go to the multiprocessors in turn; otherwise each
            multiprocessor has one block with a run of queries of its own.
    """

    brick: tuple[int, int, int] = (0, 0, 0)
    warps: int = 16
    resident: int = 1
    dealt: bool = False


ORDERS = {
    "dealt out": Order(warps=4, resident=4, dealt=True),
    "runs": Order(),
    "bricks 3x3x3": Order((3, 3, 3)),
    "bricks 5x5x9": Order((5, 5, 9)),
    "bricks 8x8x8": Order((8, 8, 8)),
    "bricks 16x16x1": Order((16, 16, 1)),
}


class _Setting(ctypes.Structure):
    _fields_ = (
        ("spatial_shapes", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("brick", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    )


def rows_of_heads(workload: Workload, seed: int = 0) -> Tensor:
    """[M, Q, L * K, corners]: numbers of the rows that heads read, int32, -1 where none is."""
    inputs = make_inputs(workload, seed)
    heads = range(workload.num_heads)
    return torch.stack([corner_table(workload, inputs, 0, head) for head in heads])


def miss_rate(
    workload: Workload,
    order: Order,
    rows: Tensor,
    *,
    multiprocessors: int = _MULTIPROCESSORS,
    cache_bytes: int = _CACHE_BYTES,
) -> float:
    """The share of 32-byte sectors that a multiprocessor has to fetch, and not from its L1.

    Args:
        workload: For its sizes; in a batch of one.
        order: Of the reads; bricks only where there are as many queries as cells.
        rows: What it reads, of `rows_of_heads`.
        multiprocessors: How many share the work.
        cache_bytes: Of L1.
    """
    rows = rows.contiguous()
    shapes = torch.tensor(workload.spatial_shapes)
    setting = _Setting(
        spatial_shapes=shapes.data_ptr(),
        rows=rows.data_ptr(),
        brick=(ctypes.c_int64 * 3)(*order.brick),
        N=shapes.shape[1],
        M=workload.num_heads,
        row_bytes=workload.head_dim * DTYPES[workload.dtype].itemsize,
        Q=workload.num_queries,
        L=len(shapes),
        samples=rows.shape[2],
        warps=order.warps,
        rows_of_tile=32 // (workload.head_dim // _LANE_CHANNELS),
        resident=order.resident,
        dealt=order.dealt,
        multiprocessors=multiprocessors,
        cache_bytes=cache_bytes,
    )
    simulate = compiled.library(_SOURCE).miss_rate
    simulate.restype = ctypes.c_double
    return float(simulate(ctypes.byref(setting)))


def orders_for(workload: Workload) -> dict[str, Order]:
    """The orders that a workload can be done in: bricks need a query at every cell."""
    plain = workload.num_object_queries is not None
    return {name: order for name, order in ORDERS.items() if not (plain and any(order.brick))}
