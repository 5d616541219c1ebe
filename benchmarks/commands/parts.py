"""`python -m benchmarks parts`: what is left in the CPU kernels, by bandwidth and time by part.

Bandwidth is of the native core as it is installed, time by part of one compiled with line tables.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from benchmarks.commands import showing
from benchmarks.costs import cpu_parts
from benchmarks.measure import recording, sampling
from benchmarks.measure.rows import Row
from benchmarks.measure.stats import spread
from benchmarks.measure.timing import CpuClock, Task, interleave
from benchmarks.metrics import Job, about, measure
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import DTYPES, WORKLOADS, Workload
from stdeform import _native

_USUAL = (
    *("paper-encoder", "paper-encoder-large", "detr-encoder", "bev-cross"),
    *("paper-decoder", "detr-decoder"),
)
_MODES = ("forward", "backward")
_ROUNDS = 25  # of one mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    showing.add_workloads(parser, default=" ".join(_USUAL))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    recording.add_arguments(parser, seconds=8)


def run(options: argparse.Namespace) -> int:
    """Measures, prints every row, and at the end the tables.

    Returns:
        The exit status, 0.

    Raises:
        WrongAnswerError: The kernel computes something else; it was not timed.
        SystemExit: There is no native kernel.
        RuntimeError: It cannot be compiled with line tables, or a tool is missing.
    """
    if reason := _native.missing("cpu"):
        raise SystemExit(f"parts are those of the native kernel: {reason}")
    library = cpu_parts.core_with_lines()
    return showing.measure_and_show("parts", options, _rows(options, library))


def _rows(options: argparse.Namespace, library: Path) -> Iterator[Row]:
    core = cpu_parts.load_core(library)
    for name in options.workloads or _USUAL:
        for dtype in options.dtypes:
            workload = dataclasses.replace(WORKLOADS[name], dtype=dtype)
            job = Job(
                *(workload, ("bandwidth",), ("native",), options.threads),
                seconds=10 * options.seconds,  # of which bandwidth takes a tenth
                rounds=options.rounds,
                seed=options.seed,
            )
            yield from measure(job)
            with mock.patch.object(_native, "_C", core):
                yield from _parts(workload, library, options)


def _parts(workload: Workload, library: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Time by part of each mode."""
    prepared = IMPLEMENTATIONS["native"].prepare(workload, options.seed)
    clock = CpuClock(options.seconds / _ROUNDS)
    for mode in _MODES:
        task = Task("native", prepared.call(mode), options.threads)
        torch.set_num_threads(task.threads)
        task.run()  # starts the threads that are sampled
        pace = {"seconds": options.seconds, "rounds": options.rounds}
        with sampling.sampled(library) as samples:
            times = interleave([task], clock, **pace)["native"]["seconds"]
        yield {
            "measurement": "parts",
            **about(workload, options.threads),
            "subject": "native",
            "variant": "native",
            "mode": mode,
            "seconds": dataclasses.asdict(spread(times)),
            "rounds": times,
            "samples": len(samples),
            "parts": cpu_parts.shares(library, samples),
        }
