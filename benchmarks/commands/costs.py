"""`python -m benchmarks costs`: what the CUDA kernels should cost, counted and simulated.

Nothing is timed and no GPU is needed (docs/internals). `atomic-adds`: numbers the backward adds
to the value's gradient in memory; `l1-misses`: of the forward, by order of work.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator

from benchmarks.costs import atomics, cache_sim
from benchmarks.workloads import DTYPES, WORKLOADS, Workload, make_inputs, spread_of

_WORKLOADS = ("paper-encoder", "paper-encoder-large", "detr-encoder", "paper-decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("table", choices=_TABLES)
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=_WORKLOADS)
    parser.add_argument("--spreads", nargs="+", default=["2"], help='cells, or "uniform"')
    parser.add_argument(
        "--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32"], help="of l1-misses"
    )


def run(options: argparse.Namespace) -> int:
    """Prints a table."""
    columns, lines = _TABLES[options.table]
    heads = ["workload", "offsets", *columns]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in options.workloads:
        for spread in options.spreads:
            workload = dataclasses.replace(WORKLOADS[name], offset_spread=spread_of(spread))
            for about, cells in lines(workload, options.dtypes):
                print(f"| {' | '.join((about, spread, *cells))} |", flush=True)
    return 0


_Lines = Iterator[tuple[str, list[str]]]


def _atomic_adds(workload: Workload, _: list[str]) -> _Lines:
    bins = atomics.sort_into_bins(workload, make_inputs(workload, 0))
    samples, added = int(bins.samples.sum()), atomics.count(bins, workload.head_dim)
    yield (
        workload.name,
        [
            *(f"{samples:,}", f"{samples / len(bins.samples):.1f}"),
            *(f"{added.direct / 1e6:.1f} M", f"{added.by_bins / 1e6:.1f} M"),
            f"{added.direct / added.by_bins:.1f}",
        ],
    )


def _l1_misses(workload: Workload, dtypes: list[str]) -> _Lines:
    rows = cache_sim.rows_of_heads(workload)  # the same in all dtypes that are not wider
    orders = cache_sim.orders_for(workload)
    for dtype in dtypes:
        in_dtype = dataclasses.replace(workload, dtype=dtype)
        rates = {name: cache_sim.miss_rate(in_dtype, order, rows) for name, order in orders.items()}
        cells = [f"{rates[name]:.3f}" if name in rates else "-" for name in cache_sim.ORDERS]
        yield f"{workload.name}, {dtype}", cells


_TABLES: dict[str, tuple[list[str], Callable[[Workload, list[str]], _Lines]]] = {
    "atomic-adds": (
        ["samples", "in a bin", "added one by one", "bin by bin", "times fewer"],
        _atomic_adds,
    ),
    "l1-misses": (list(cache_sim.ORDERS), _l1_misses),
}
