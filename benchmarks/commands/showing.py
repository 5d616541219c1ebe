"""What commands that measure have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from benchmarks.measure.recording import Recorder
from benchmarks.measure.rows import Row
from benchmarks.report import tables
from benchmarks.workloads import WORKLOADS


def add_workloads(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Declares the workloads to measure; `default` says which, if none is named."""
    parser.add_argument(
        "workloads",
        nargs="*",
        type=_workload_name,
        metavar="WORKLOAD",
        help=f"some of {', '.join(WORKLOADS)}; by default {default}",
    )


def _workload_name(text: str) -> str:
    if text not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(WORKLOADS)}, got {text}")
    return text


def measure_and_show(suite: str, options: argparse.Namespace, rows: Iterable[Row]) -> int:
    """Records the rows of a run, prints each as soon as it is measured, and all as tables.

    Args:
        suite: Name of the command.
        options: Of the command line, with those of `recording.add_arguments`.
        rows: Measured as they are drawn.

    Returns:
        The exit status, 0.
    """
    device = getattr(options, "device", "cpu")
    recorder = Recorder(suite, options, options.argv, device=device)
    for row in recorder.add(rows):
        print(tables.line(row), flush=True)
    print("\n" + tables.tables(recorder.rows))
    return 0
