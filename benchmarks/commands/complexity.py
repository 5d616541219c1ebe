"""`python -m benchmarks complexity`: how cost grows with the volume, deformable and dense.

Operator, decoder (as many queries whatever the volume) and their attention blocks (with
projections) on volumes from a few cells to 72 frames, the encoder's block also as H and as W grow:
counted multiply-adds and bytes, measured time and peak memory, the exponent of T * H * W, and the
size from which on deformable attention is cheaper. Besides, the operator as K, C and the number of
queries grow, with exponents of these.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import metrics
from benchmarks.commands import showing
from benchmarks.costs.flops import multiply_adds, operand_bytes
from benchmarks.measure import recording
from benchmarks.measure.rows import MODES, Row
from benchmarks.measure.timing import CpuClock, Task, compare
from benchmarks.report.growth import crossovers, exponents
from benchmarks.subjects.base import Case
from benchmarks.subjects.blocks import BLOCKS, check_block
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload

_ENCODER = WORKLOADS["paper-encoder"]
_VARIANTS = {"deformable": "native", "dense": "dense", "dense, naive": "dense-naive"}
_COMPARED = ("deformable", "dense")  # as something else grows than T
_SUBJECTS = ("operator", "decoder", "attention block", "decoder block")
_QUERIES = 360  # of the decoder
# Of the paper's clip on few cells and then more and more frames; dense attention wins on the first.
_VOLUMES = (
    *((1, 3, 4), (1, 5, 8), (1, 5, 17)),
    *((frames, 10, 17) for frames in (1, 2, 4, 9, 18, 36, 72)),
)
_QUICK_VOLUMES = ((1, 10, 17), (4, 10, 17))
# Volumes that grow along another axis than T.
_OTHER_AXES = {
    "H": ((9, 10, 17), (9, 20, 17), (9, 40, 17)),
    "W": ((9, 10, 17), (9, 10, 34), (9, 10, 68)),
}
# Scores of a head: more of them, written down, take gigabytes, and seconds a call.
_MOST_SCORES = 3060**2
# Sizes below say what a call costs, not how it grows.
_SMALLEST_FITTED = 1500
_FITTED_ROUNDS, _SWEEP_ROUNDS = 8, 5
# Calls on smaller ones are short: more rounds, and shorter samples.
_SMALL_ROUNDS = 10
_SHORT_SECONDS = 0.03
# Peak memory is taken where it is more than the system's counters are off.
_MEMORY_SUBJECTS = ("operator", "attention block")
_MEMORY_FRAMES = (9, 18, 36)
_SWEEPS: dict[str, tuple[int, ...]] = {
    "num_points": (8, 32, 64),
    "head_dim": (16, 48, 96),
    "num_object_queries": (90, 360, 1440),
}
_LETTERS = {"num_points": "K", "head_dim": "C", "num_object_queries": "Q"}


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
    return showing.measure_and_show("complexity", options, _all(options))


def _all(options: argparse.Namespace) -> Iterator[Row]:
    volumes = [_volume(*shape) for shape in (_QUICK_VOLUMES if options.quick else _VOLUMES)]
    for subject in _SUBJECTS:
        yield from _growing(subject, "T", volumes, options)
    if options.quick:
        return
    for axis, shapes in _OTHER_AXES.items():
        others = [_volume(*shape) for shape in shapes]
        yield from _growing("attention block", axis, others, options)
    (_, height, width), *_ = _ENCODER.spatial_shapes
    for subject in _MEMORY_SUBJECTS:
        for count in _MEMORY_FRAMES:
            yield from _memory(subject, _volume(count, height, width), options)
    for field, sizes in _SWEEPS.items():
        yield from _sweep(field, sizes, options)


def _volume(frames: int, height: int, width: int) -> Workload:
    return dataclasses.replace(
        _ENCODER,
        name=f"{frames} x {height} x {width}",
        spatial_shapes=((frames, height, width),),
    )


def _growing(
    subject: str, axis: str, volumes: Sequence[Workload], options: argparse.Namespace
) -> Iterator[Row]:
    """A subject on volumes that differ along one axis, and how its cost grows with them."""
    if subject.startswith("decoder"):
        volumes = [dataclasses.replace(each, num_object_queries=_QUERIES) for each in volumes]
    smallest = 0 if options.quick else _SMALLEST_FITTED
    small = [volume for volume in volumes if volume.num_cells < smallest]
    rows = []
    kinds = tuple(_VARIANTS) if axis == "T" else _COMPARED
    for group in filter(None, (small, volumes[len(small) :])):
        pace = _pace(options, _FITTED_ROUNDS, are_small=group is small)
        for row in _measure(subject, group, kinds, pace, options):
            rows.append({**row, "measurement": "complexity", "axis": axis})
            yield rows[-1]
    label = subject if axis == "T" else f"{subject}, {axis} alone"
    for row in (*exponents(rows, smallest=smallest), *crossovers(rows)):
        yield {**row, "label": label, "axis": axis}


def _sweep(field: str, sizes: Sequence[int], options: argparse.Namespace) -> Iterator[Row]:
    """The operator as one size grows that is not the volume's, and how its cost does."""
    changes: list[dict[str, Any]] = [{field: size} for size in sizes]
    changed = [dataclasses.replace(_ENCODER, **change) for change in changes]
    rows = []
    for row in _measure("operator", changed, _COMPARED, _pace(options, _SWEEP_ROUNDS), options):
        size = row["workload"][field]
        rows.append({**row, "measurement": f"sweep of {field}", "size": size})
        yield rows[-1]
    axis = _LETTERS[field]
    for row in exponents(rows, "size"):
        yield {**row, "label": f"operator, {axis} alone", "axis": axis}


def _measure(
    subject: str,
    volumes: Sequence[Workload],
    kinds: Sequence[str],
    pace: dict[str, Any],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """All kinds on all volumes in turn, in both modes, as far as they are not too large.

    In each round every volume has its turn: a machine that slows down for minutes slows all down.
    """
    prepared = {
        volume: _prepare(subject, volume, _kinds(volume, kinds), options.seed) for volume in volumes
    }
    for mode in MODES:
        tasks = {
            (volume, kind): Task(
                f"{kind} on {number}",
                each.call(mode),
                options.threads,
                may_sit_out=kind != "deformable",
            )
            for number, (volume, kinds) in enumerate(prepared.items())
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
                "operand_bytes": operand_bytes(volume, kind),
                **figures,
            }


def _pace(options: argparse.Namespace, at_least: int, are_small: bool = False) -> dict[str, Any]:
    """The clock, the time and the rounds for `compare`."""
    short = CpuClock(_SHORT_SECONDS)
    if options.quick:
        return {"clock": short, "seconds": options.seconds}
    if are_small:
        return {"clock": short, "seconds": options.seconds / 4, "at_least": _SMALL_ROUNDS}
    return {
        "seconds": options.seconds,
        "at_least": at_least,
        "slow_rounds": options.slow_rounds,
    }


def _prepare(subject: str, workload: Workload, kinds: Sequence[str], seed: int) -> dict[str, Case]:
    """Kinds of a subject, checked."""
    if subject in BLOCKS:
        check_block(workload, seed)
        return {kind: BLOCKS[subject][kind](workload, seed) for kind in kinds}
    names = [_VARIANTS[kind] for kind in kinds]
    _check(workload, names, seed)
    return {kind: IMPLEMENTATIONS[_VARIANTS[kind]].prepare(workload, seed) for kind in kinds}


def _kinds(workload: Workload, kinds: Sequence[str]) -> list[str]:
    """Those that a workload is not too large for."""
    scores = workload.num_queries * workload.num_cells
    return [kind for kind in kinds if kind != "dense, naive" or scores <= _MOST_SCORES]


def _check(workload: Workload, names: list[str], seed: int) -> None:
    """Checks variants on at most four frames of a workload: of more the oracle takes too long."""
    ((frames, height, width),) = workload.spatial_shapes
    short = dataclasses.replace(workload, spatial_shapes=((min(4, frames), height, width),))
    check_correctness(short, {name: IMPLEMENTATIONS[name].prepare(short, seed) for name in names})


def _memory(subject: str, workload: Workload, options: argparse.Namespace) -> Iterator[Row]:
    """Peak extra memory of forward and backward, each in a process of its own."""
    mode, block = MODES[-1], subject if subject in BLOCKS else None
    first: int | None = None
    for kind in _kinds(workload, tuple(_VARIANTS)):
        name = kind if block else _VARIANTS[kind]
        peak = metrics.measure_peak(workload, name, mode, options.threads, options.seed, block)
        first = first or peak.extra_bytes
        yield {
            **metrics.about(workload, options.threads),
            "measurement": "memory by size",
            "label": f"{subject}, {workload.label}",
            "subject": subject,
            "variant": kind,
            "mode": mode,
            "cells": workload.num_cells,
            **metrics.peak_row(peak, "deformable", first),
        }
