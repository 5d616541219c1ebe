"""`python -m benchmarks layers`: attention with its projections, and whole encoder layers.

At the sizes of the paper's encoder, deformable beside dense.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import metrics
from benchmarks.commands import showing
from benchmarks.measure import recording
from benchmarks.measure.rows import MODES, Row
from benchmarks.measure.timing import Task, compare
from benchmarks.subjects.blocks import BLOCKS, check_block
from benchmarks.workloads import WORKLOADS

_BLOCKS = ("attention block", "encoder layer")
_KINDS = ("deformable", "dense")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="a tiny volume, in seconds")
    recording.add_arguments(parser, seconds=20)
    recording.add_slow_rounds(parser, default=None)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 0.

    Raises:
        WrongAnswerError: A block computes something else; it was not timed.
    """
    names = ["tiny"] if options.quick else ["paper-encoder", "paper-encoder-large"]
    rows = (row for name in names for block in _BLOCKS for row in _measure(block, name, options))
    return showing.measure_and_show("layers", options, rows)


def _measure(block: str, name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Both kinds of a block on a workload, deformable first and checked."""
    workload = WORKLOADS[name]
    check_block(workload, options.seed)
    prepared = {kind: BLOCKS[block][kind](workload, options.seed) for kind in _KINDS}
    pace = {name: getattr(options, name) for name in ("seconds", "rounds", "slow_rounds")}
    for mode in MODES:
        tasks = [Task(kind, each.call(mode), options.threads) for kind, each in prepared.items()]
        for kind, figures in compare(tasks, **pace):
            yield {
                "measurement": block,
                **metrics.about(workload, options.threads),
                "subject": _KINDS[0],
                "variant": kind,
                "mode": mode,
                **figures,
            }
