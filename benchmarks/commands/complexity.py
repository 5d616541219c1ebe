"""`python -m benchmarks complexity`: how cost grows with the volume, deformable and dense.

Operator, decoder (as many queries whatever the volume) and their attention blocks (with
projections) on volumes from a few cells to 72 frames: counted multiply-adds, measured time, the
exponent of T * H * W, and the size from which on deformable attention is cheaper.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import metrics
from benchmarks.commands import showing
from benchmarks.costs.flops import multiply_adds
from benchmarks.measure import recording
from benchmarks.measure.rows import MODES, Row
from benchmarks.measure.timing import CpuClock, Task, compare
from benchmarks.report.growth import crossovers, exponents
from benchmarks.subjects.base import Case
from benchmarks.subjects.blocks import BLOCKS, check_block
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload

_VARIANTS = {"deformable": "native", "dense": "dense", "dense, naive": "dense-naive"}
_SUBJECTS = ("operator", "decoder", "attention block", "decoder block")
_QUERIES = 360  # of the decoder
# Of the paper's clip on few cells and then more and more frames; dense attention wins on the first.
_VOLUMES = (
    *((1, 3, 4), (1, 5, 8), (1, 5, 17)),
    *((frames, 10, 17) for frames in (1, 2, 4, 9, 18, 36, 72)),
)
_QUICK_VOLUMES = ((1, 10, 17), (4, 10, 17))
# Scores of a head: more of them, written down, take gigabytes, and seconds a call.
_MOST_SCORES = 3060**2
# Sizes below say what a call costs, not how it grows.
_SMALLEST_FITTED = 1500
_FITTED_ROUNDS = 8
# Calls on smaller ones are short: more rounds, and shorter samples.
_SMALL_ROUNDS = 10
_SHORT_SECONDS = 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="a few small volumes, in seconds")
    recording.add_arguments(parser, seconds=60)
    recording.add_slow_rounds(parser, default=3)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 0.

    Raises:
        WrongAnswerError: The operator computes something else; it was not timed.
    """
    rows = (row for subject in _SUBJECTS for row in _growing(subject, options))
    return showing.measure_and_show("complexity", options, rows)


def _growing(subject: str, options: argparse.Namespace) -> Iterator[Row]:
    """A subject on all volumes, and how its cost grows with them."""
    queries = _QUERIES if subject.startswith("decoder") else None
    volumes = [
        dataclasses.replace(
            WORKLOADS["paper-encoder"],
            name=" x ".join(map(str, shape)),
            spatial_shapes=(shape,),
            num_object_queries=queries,
        )
        for shape in (_QUICK_VOLUMES if options.quick else _VOLUMES)
    ]
    smallest = 0 if options.quick else _SMALLEST_FITTED
    small = [volume for volume in volumes if volume.num_cells < smallest]
    rows = []
    for group in filter(None, (small, volumes[len(small) :])):
        for row in _measure(subject, group, _pace(options, are_small=group is small), options):
            rows.append({**row, "measurement": "complexity"})
            yield rows[-1]
    for row in (*exponents(rows, smallest), *crossovers(rows)):
        yield {**row, "label": subject}


def _measure(
    subject: str, volumes: Sequence[Workload], pace: dict[str, Any], options: argparse.Namespace
) -> Iterator[Row]:
    """All kinds on all volumes in turn, in both modes, as far as they are not too large.

    In each round every volume has its turn: a machine that slows down for minutes slows all down.
    """
    prepared = {volume: _prepare(subject, volume, options.seed) for volume in volumes}
    for mode in MODES:
        tasks = {
            (volume, kind): Task(
                f"{kind} on {volume.name}",
                each.call(mode),
                options.threads,
                may_sit_out=kind != "deformable",
            )
            for volume, kinds in prepared.items()
            for kind, each in kinds.items()
        }
        first = {task.name: tasks[volume, "deformable"].name for (volume, _), task in tasks.items()}
        timed = compare(list(tasks.values()), to=first, rounds=options.rounds, **pace)
        for (volume, kind), (_, figures) in zip(tasks, timed, strict=True):
            figures["ratio"]["to"] = "deformable"
            yield {
                **metrics.about(volume, options.threads),
                "subject": subject,
                "variant": kind,
                "mode": mode,
                "cells": volume.num_cells,
                "multiply_adds": multiply_adds(volume, kind, subject in BLOCKS),
                **figures,
            }


def _pace(options: argparse.Namespace, *, are_small: bool) -> dict[str, Any]:
    """The clock, the time and the rounds for `compare`."""
    short = CpuClock(_SHORT_SECONDS)
    if options.quick:
        return {"clock": short, "seconds": options.seconds}
    if are_small:
        return {"clock": short, "seconds": options.seconds / 4, "at_least": _SMALL_ROUNDS}
    return {
        "seconds": options.seconds,
        "at_least": _FITTED_ROUNDS,
        "slow_rounds": options.slow_rounds,
    }


def _prepare(subject: str, workload: Workload, seed: int) -> dict[str, Case]:
    """The kinds of a subject that a workload is not too large for, checked."""
    scores = workload.num_queries * workload.num_cells
    kinds = [kind for kind in _VARIANTS if kind != "dense, naive" or scores <= _MOST_SCORES]
    if subject in BLOCKS:
        check_block(workload, seed)
        return {kind: BLOCKS[subject][kind](workload, seed) for kind in kinds}
    operators = {kind: IMPLEMENTATIONS[_VARIANTS[kind]] for kind in kinds}
    # On at most four frames: of more the oracle takes too long.
    ((frames, *sides),) = workload.spatial_shapes
    short = dataclasses.replace(workload, spatial_shapes=((min(4, frames), *sides),))
    check_correctness(short, {each.name: each.prepare(short, seed) for each in operators.values()})
    return {kind: each.prepare(workload, seed) for kind, each in operators.items()}
