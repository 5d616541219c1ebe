"""`python -m benchmarks complexity`: how cost grows with the volume, deformable and dense.

Operator, decoder (as many queries whatever the volume) and attention block (with projections) on
volumes of more and more frames, the block also as H and as W grow: counted multiply-adds and bytes,
measured time and peak memory, the exponent of T * H * W, and the size from which on deformable
attention is cheaper. Besides, the operator as K, C and the number of queries grow.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from . import environment, fit, recording, report
from .answers import check_answers
from .bars import Row
from .blocks import BLOCKS, check_block
from .memory import measure_peak
from .prepared import MODES, Prepared
from .timing import Task, interleave, ratios, spread
from .variants import VARIANTS
from .workloads import WORKLOADS, Workload

_ENCODER = WORKLOADS["paper-encoder"]
_VARIANTS = {"deformable": "native", "dense": "dense", "dense, naive": "dense-naive"}
_SUBJECTS = ("operator", "decoder", "attention block")
_QUERIES = 360  # of the decoder
_FRAMES = (1, 2, 4, 9, 18, 36, 72)
_QUICK_FRAMES = (1, 4)
# Volumes that grow along another axis than T.
_OTHER_AXES = {
    "H": ((9, 20, 17), (9, 40, 17), (9, 80, 17)),
    "W": ((9, 10, 34), (9, 10, 68), (9, 10, 136)),
}
# Scores that are written down take gigabytes, and seconds a call, beyond.
_LARGEST_NAIVE = 3060
# Sizes below say what a call costs, not how it grows.
_SMALLEST_FITTED = 1500
# Peak memory is taken where it is more than the system's counters are off.
_MEMORY_FRAMES = (18, 36, 72)
_SWEEPS: dict[str, tuple[int, ...]] = {
    "num_points": (8, 16, 32, 64),
    "head_dim": (16, 32, 48, 64, 96),
    "num_object_queries": (90, 360, 1440),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="a few small volumes, in seconds")
    recording.add_arguments(parser, seconds=60)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Measures and prints; the exit status is 0.

    Raises:
        WrongAnswerError: The operator computes something else; it was not timed.
    """
    report.show(recording.Recorder("complexity", options, arguments), _all(options))
    return 0


def _all(options: argparse.Namespace) -> Iterator[Row]:
    frames = _QUICK_FRAMES if options.quick else _FRAMES
    (_, height, width), *_ = _ENCODER.spatial_shapes
    volumes = [_volume(count, height, width) for count in frames]
    smallest = 0 if options.quick else _SMALLEST_FITTED
    for subject in _SUBJECTS:
        yield from _growing(subject, "T", volumes, smallest, options)
    if options.quick:
        return
    for axis, shapes in _OTHER_AXES.items():
        others = [_volume(*shape) for shape in shapes]
        yield from _growing("attention block", axis, others, smallest, options)
    for count in _MEMORY_FRAMES:
        yield from _memory(_volume(count, height, width), options)
    for field, sizes in _SWEEPS.items():
        changes: list[dict[str, Any]] = [{field: size} for size in sizes]
        changed = [dataclasses.replace(_ENCODER, **change) for change in changes]
        for row in _measure("operator", changed, options):
            yield {**row, "measurement": f"sweep of {field}", "size": row["workload"][field]}


def _volume(frames: int, height: int, width: int) -> Workload:
    return dataclasses.replace(
        _ENCODER,
        name=f"{frames} x {height} x {width}",
        spatial_shapes=((frames, height, width),),
    )


def _growing(
    subject: str, axis: str, volumes: list[Workload], smallest: int, options: argparse.Namespace
) -> Iterator[Row]:
    """A subject on volumes that differ along one axis, and how its cost grows with them."""
    if subject == "decoder":
        volumes = [dataclasses.replace(each, num_object_queries=_QUERIES) for each in volumes]
    rows = []
    for row in _measure(subject, volumes, options):
        rows.append({**row, "measurement": "complexity", "axis": axis})
        yield rows[-1]
    label = subject if axis == "T" else f"{subject}, {axis} alone"
    for row in _growth(rows, smallest):
        yield {**row, "label": label, "axis": axis}


def _measure(subject: str, volumes: list[Workload], options: argparse.Namespace) -> Iterator[Row]:
    """All kinds on all volumes in turn, in both modes.

    In each round every volume has its turn: a machine that slows down for minutes slows all down.
    """
    prepared = {volume: _prepare(subject, volume, options.seed) for volume in volumes}
    for mode in MODES:
        tasks = {
            (volume, kind): Task(f"{kind} on {number}", each.call(mode), options.threads)
            for number, (volume, kinds) in enumerate(prepared.items())
            for kind, each in kinds.items()
        }
        samples = interleave(
            list(tasks.values()), budget_seconds=options.seconds, rounds=options.rounds
        )
        for (volume, kind), task in tasks.items():
            own = samples[task.name]
            ratio = spread(ratios(own, samples[tasks[volume, "deformable"].name]))
            yield {
                **_about(volume, options),
                "subject": subject,
                "variant": kind,
                "mode": mode,
                "cells": volume.num_cells,
                "multiply_adds": multiply_adds(volume, kind, subject in BLOCKS),
                "operand_bytes": operand_bytes(volume, kind),
                "seconds": dataclasses.asdict(spread(own)),
                "rounds": own,
                "ratio": {"to": "deformable", **dataclasses.asdict(ratio)},
            }


def _prepare(subject: str, workload: Workload, seed: int) -> dict[str, Prepared]:
    """Every kind of a subject, checked."""
    if subject in BLOCKS:
        check_block(workload, seed)
        return {kind: prepare(workload, seed) for kind, prepare in BLOCKS[subject].items()}
    names = _variants(workload)
    _check(workload, list(names.values()), seed)
    return {kind: VARIANTS[name].prepare(workload, seed) for kind, name in names.items()}


def _variants(workload: Workload) -> dict[str, str]:
    """Names in `VARIANTS` by kind: those that a workload is not too large for."""
    return {
        kind: name
        for kind, name in _VARIANTS.items()
        if name != "dense-naive" or workload.num_cells <= _LARGEST_NAIVE
    }


def _check(workload: Workload, names: list[str], seed: int) -> None:
    """Checks variants on at most four frames of a workload: of more the oracle takes too long."""
    ((frames, height, width),) = workload.spatial_shapes
    short = dataclasses.replace(workload, spatial_shapes=((min(4, frames), height, width),))
    check_answers(short, {name: VARIANTS[name].prepare(short, seed) for name in names})


def _about(workload: Workload, options: argparse.Namespace) -> Row:
    return {
        "workload": dataclasses.asdict(workload),
        "label": workload.label,
        "subject": "operator",
        "threads": options.threads,
        "load_average": environment.load_average(),
    }


def multiply_adds(workload: Workload, kind: str, with_projections: bool) -> int:
    """Multiply-adds of the forward pass, from the shapes alone.

    Deformable: one per corner, sample and channel. Dense: one per query, cell and channel for the
    scores, and one for the sum. Projections: four of C x C for dense attention; for deformable two
    of these and those to offsets and logits.
    """
    queries, cells = workload.batch * workload.num_queries, workload.num_cells
    width = workload.num_heads * workload.head_dim
    axes = len(workload.spatial_shapes[0])
    samples = len(workload.spatial_shapes) * workload.num_points  # of a query and head
    if kind.startswith("dense"):
        attention, projections = 2 * queries * cells * width, 4 * queries * width * width
    else:
        attention = queries * samples * 2**axes * width
        predicted = (axes + 1) * workload.num_heads * samples
        projections = queries * width * (2 * width + predicted)
    return attention + projections * with_projections


def operand_bytes(workload: Workload, kind: str) -> int:
    """Bytes of what the attention of a forward pass reads and writes in memory, each tensor once.

    Deformable: value, reference points, offsets, logits, result. Dense: query, key, value, result.
    Naive: also the scores, written and read for the softmax, and its result likewise. In
    float32; projections are left out.
    """
    queries, cells = workload.batch * workload.num_queries, workload.batch * workload.num_cells
    width = workload.num_heads * workload.head_dim
    if kind == "deformable":
        axes, levels = len(workload.spatial_shapes[0]), len(workload.spatial_shapes)
        samples = workload.num_heads * levels * workload.num_points  # of a query
        numbers = cells * width + queries * (levels * axes + (axes + 1) * samples + width)
    else:
        numbers = 2 * (queries + cells) * width
        if kind == "dense, naive":
            numbers += 4 * workload.num_heads * queries * workload.num_cells
    return 4 * numbers


def _growth(rows: list[Row], smallest: int) -> Iterator[Row]:
    """Exponents of T * H * W, measured and counted, and where the kinds meet."""
    for mode in MODES:
        costs: dict[str, dict[float, Any]] = {}
        counts: dict[str, dict[float, float]] = {}
        for row in rows:
            if row["mode"] == mode:
                costs.setdefault(row["variant"], {})[row["cells"]] = row["rounds"]
                counts.setdefault(row["variant"], {})[row["cells"]] = row["multiply_adds"]
        about = {key: rows[0][key] for key in ("subject", "threads")}
        medians = {kind: _medians(rows, kind, mode) for kind in costs}
        for kind, by_size in costs.items():
            fitted = {size: each for size, each in by_size.items() if size >= smallest}
            found = fit.exponent(fitted)
            counted = {size: counts[kind][size] for size in fitted}
            yield {
                **about,
                "measurement": "exponent",
                "variant": kind,
                "mode": mode,
                "exponent": dataclasses.asdict(found),
                "counted": fit.slope(counted),
                "sizes": sorted(fitted),
            }
        yield {
            **about,
            "measurement": "crossover",
            "variant": "deformable",
            "mode": mode,
            "cells": fit.crossover(medians["deformable"], medians["dense"]),
            "smallest": min(medians["dense"]),
        }


def _medians(rows: list[Row], kind: str, mode: str) -> Mapping[float, float]:
    return {
        row["cells"]: row["seconds"]["median"]
        for row in rows
        if (row["variant"], row["mode"]) == (kind, mode)
    }


def _memory(workload: Workload, options: argparse.Namespace) -> Iterator[Row]:
    """Peak extra memory of forward and backward, each in a process of its own."""
    mode = MODES[-1]
    first: int | None = None
    for kind, name in _variants(workload).items():
        peak = measure_peak(workload, name, mode, threads=options.threads, seed=options.seed)
        first = first or peak.extra_bytes
        yield {
            **_about(workload, options),
            "measurement": "memory by size",
            "variant": kind,
            "mode": mode,
            "cells": workload.num_cells,
            "extra_bytes": peak.extra_bytes,
            "method": peak.method,
            "ratio": {"to": "deformable", "median": peak.extra_bytes / first if first else None},
        }
