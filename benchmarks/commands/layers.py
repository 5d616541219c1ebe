"""`python -m benchmarks layers`: attention with its projections, and whole encoder layers.

At the sizes of the paper's encoder, deformable beside dense.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.measure import environment, recording
from benchmarks.measure.measurements import compare
from benchmarks.measure.timing import Task
from benchmarks.report import report
from benchmarks.report.bars import Row
from benchmarks.subjects.base import MODES
from benchmarks.subjects.blocks import BLOCKS, check_block
from benchmarks.workloads import WORKLOADS, Workload

_BLOCKS = ("attention block", "encoder layer")
_KINDS = ("deformable", "dense")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="a tiny volume, in seconds")
    recording.add_arguments(parser, seconds=20)
    recording.add_slow_rounds(parser, default=None)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Measures and prints; the exit status is 0."""
    recorder = recording.Recorder("layers", options, arguments)
    names = ["tiny"] if options.quick else ["paper-encoder", "paper-encoder-large"]
    rows = (
        row
        for name in names
        for block in _BLOCKS
        for row in measure(block, WORKLOADS[name], options)
    )
    report.show(recorder, rows)
    return 0


def measure(
    block: str, workload: Workload, options: argparse.Namespace, modes: Sequence[str] = MODES
) -> Iterator[Row]:
    """Both kinds of a block on a workload, deformable first and checked.

    Raises:
        WrongAnswerError: It computes something else; it was not timed.
    """
    check_block(workload, options.seed)
    prepared = {kind: BLOCKS[block][kind](workload, options.seed) for kind in _KINDS}
    for mode in modes:
        tasks = [Task(kind, each.call(mode), options.threads) for kind, each in prepared.items()]
        timed = compare(tasks, options.seconds, options.rounds, options.slow_rounds)
        for kind, figures in timed:
            yield {
                "measurement": block,
                "workload": dataclasses.asdict(workload),
                "label": workload.label,
                "subject": _KINDS[0],
                "threads": options.threads,
                "load_average": environment.load_average(),
                "variant": kind,
                "mode": mode,
                **figures,
            }
