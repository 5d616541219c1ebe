"""`python -m benchmarks cache-order`: L1 misses of the CUDA forward, simulated, by order of work.

The rows that the samples of a workload read go through a cache that forgets what was read longest
ago, in the order in which the kernel's own index arithmetic (csrc/cuda/schedule.h) hands out
queries. Nothing is timed and no GPU is needed: an order is chosen by its share of sector misses.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.costs.traffic import corner_table
from benchmarks.measure import compiled
from benchmarks.workloads import DTYPES, WORKLOADS, Workload, make_inputs, spread_of

_SOURCE = Path(__file__).with_name("cache_order.cpp")
_MULTIPROCESSORS = 132  # of an H100 or H200
_CACHE_BYTES = 200 << 10  # of the 256 KiB that L1 and shared memory have together


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
    """`Setting` of cache_order.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "S", "M", "row_bytes", "Q", "L", "samples")),
        ("spatial_shapes", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("packed", ctypes.c_int64),
        ("brick", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("warps", "rows_of_tile", "resident", "dealt")),
        *((name, ctypes.c_int64) for name in ("multiprocessors", "cache_bytes")),
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
    packed: bool = False,
    multiprocessors: int = _MULTIPROCESSORS,
    cache_bytes: int = _CACHE_BYTES,
) -> float:
    """The share of 32-byte sectors that a multiprocessor has to fetch, and not from its L1.

    Args:
        workload: Of which sizes; in a batch of one.
        order: When it reads what it reads; bricks only where there are as many queries as cells.
        rows: What it reads, of `rows_of_heads`.
        packed: Whether the rows of a head lie next to each other in memory.
        multiprocessors: How many share the work.
        cache_bytes: Of L1.
    """
    rows = rows.contiguous()
    shapes = [size for shape in workload.spatial_shapes for size in shape]
    channels_of_lane = 8
    setting = _Setting(
        N=len(workload.spatial_shapes[0]),
        S=workload.num_cells,
        M=workload.num_heads,
        row_bytes=workload.head_dim * DTYPES[workload.dtype].itemsize,
        Q=workload.num_queries,
        L=len(workload.spatial_shapes),
        samples=rows.shape[2],
        spatial_shapes=ctypes.cast((ctypes.c_int64 * len(shapes))(*shapes), ctypes.c_void_p),
        rows=rows.data_ptr(),
        packed=packed,
        brick=(ctypes.c_int64 * 3)(*order.brick),
        warps=order.warps,
        rows_of_tile=32 // (workload.head_dim // channels_of_lane),
        resident=order.resident,
        dealt=order.dealt,
        multiprocessors=multiprocessors,
        cache_bytes=cache_bytes,
    )
    simulate = compiled.library(_SOURCE).miss_rate
    simulate.restype = ctypes.c_double
    return float(simulate(ctypes.byref(setting)))


@dataclasses.dataclass(frozen=True)
class Packing:
    """What a pass of its own that brings the rows of each head together would save and take.

    Attributes:
        interleaved: Share of sectors missed without it, in the kernel's order.
        packed: With it.
        read: Bytes that the multiprocessors read, from their L1 caches or past them.
        saved: Bytes of these that are not fetched into an L1 cache any more.
        moved: Bytes that the pass reads and writes.
    """

    interleaved: float
    packed: float
    read: int
    saved: float
    moved: int


def weigh_packing(workload: Workload, rows: Tensor) -> Packing:
    """Holds the misses that packing saves against the bytes that it moves."""
    order = ORDERS[_chosen_order(workload)]
    interleaved, packed = (
        miss_rate(workload, order, rows, packed=packed) for packed in (False, True)
    )
    row_bytes = workload.head_dim * DTYPES[workload.dtype].itemsize
    read = int((rows >= 0).sum()) * row_bytes
    moved = 2 * workload.num_cells * workload.num_heads * row_bytes
    return Packing(interleaved, packed, read, (interleaved - packed) * read, moved)


def _chosen_order(workload: Workload) -> str:
    """The kernel's order: bricks where every cell asks."""
    if workload.num_object_queries is not None:
        return "runs"
    return "bricks 5x5x9" if len(workload.spatial_shapes[0]) == 3 else "bricks 16x16x1"


def orders_for(workload: Workload) -> dict[str, Order]:
    """The orders that a workload can be done in: bricks are of cells that ask."""
    plain = workload.num_object_queries is not None
    return {name: order for name, order in ORDERS.items() if not (plain and any(order.brick))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    names = ["paper-encoder", "paper-encoder-large", "detr-encoder"]
    spreads = ["0.5", "2", "8", "uniform"]
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=names)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32"])
    parser.add_argument("--spreads", nargs="+", default=spreads, help='cells, or "uniform"')
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--packed", action="store_true", help="rows of a head next to each other")
    layout.add_argument(
        "--packing", action="store_true", help="what bringing them there would save and take"
    )


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Prints a table of miss rates, or of what packing saves."""
    columns = ["interleaved", "packed", "MB read", "MB saved", "MB moved", "net, of all read"]
    heads = ["workload", "offsets", *(columns if options.packing else ORDERS)]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    tell = _packing_cells if options.packing else _order_cells
    for name in options.workloads:
        for spread in options.spreads:
            workload = dataclasses.replace(WORKLOADS[name], offset_spread=spread_of(spread))
            rows = rows_of_heads(workload)  # the same in all dtypes that are not wider
            for dtype in options.dtypes:
                in_dtype = dataclasses.replace(workload, dtype=dtype)
                cells = [f"{name}, {dtype}", spread, *tell(in_dtype, rows, options.packed)]
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def _order_cells(workload: Workload, rows: Tensor, packed: bool) -> list[str]:
    orders = orders_for(workload)
    return [
        f"{miss_rate(workload, orders[name], rows, packed=packed):.3f}" if name in orders else "-"
        for name in ORDERS
    ]


def _packing_cells(workload: Workload, rows: Tensor, _: bool) -> list[str]:
    found = weigh_packing(workload, rows)
    return [
        *(f"{found.interleaved:.3f}", f"{found.packed:.3f}"),
        *(f"{size / 1e6:.0f}" for size in (found.read, found.saved, found.moved)),
        f"{(found.saved - found.moved) / found.read:.1%}",
    ]
