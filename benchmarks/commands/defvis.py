"""`python -m benchmarks defvis`: a whole model of examples/, deformable and dense.

The network, a video from bytes to results, and a training step, for the presets `paper` and
`vistr`: 36 frames of 300 x 533 pixels, one clip, float32. Besides the most bytes that live tensors
take at a time, in all and by the modules of the network.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks.commands import showing
from benchmarks.measure import environment, recording
from benchmarks.measure.memory import PartMemory, live_tensors
from benchmarks.measure.rows import Row
from benchmarks.measure.timing import Task, compare
from benchmarks.subjects.defvis_model import PARTS, WholeModel, prepare_parts

# Their modules are measured one by one.
_NETWORKS = ("network", "training step")
_PRESETS = ("paper", "vistr")
_SIZE = (300, 533)
_QUICK_SIZE = (64, 96)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="the small model, in seconds")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"by default all: {', '.join(PARTS)}; on two cores they take half an hour",
    )
    recording.add_arguments(parser, seconds=20)
    recording.add_slow_rounds(parser, default=None)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 0."""
    return showing.measure_and_show("defvis", options, _all(options))


def _all(options: argparse.Namespace) -> Iterator[Row]:
    configs = _small_configs() if options.quick else _paper_configs()
    height, width = _QUICK_SIZE if options.quick else _SIZE
    models = {
        name: prepare_parts(config, height, width, options.seed) for name, config in configs.items()
    }
    first, *_ = configs
    frames = configs[first].model.num_frames
    about = {
        "subject": first,
        "threads": options.threads,
        "frames": frames,
        "pixels": [height, width],
    }
    size = f"{frames} x {height} x {width}"
    for part, mode in models[first].calls:
        if part not in options.parts:
            continue
        for row in _measure(models, part, mode, options):
            yield {**about, "mode": mode, **row, "label": f"{row['label']}, {size}"}


def _paper_configs() -> dict[str, Any]:
    from defvis.presets import preset

    return {name: preset(name) for name in _PRESETS}


def _small_configs() -> dict[str, Any]:
    """The default of the example, and the same with dense attention."""
    from defvis.presets import preset

    small = preset("small")
    dense = dataclasses.replace(small.model, encoder_attention="dense", decoder_attention="dense")
    return {"small": small, "small, dense": dataclasses.replace(small, model=dense)}


def _measure(
    models: dict[str, WholeModel], part: str, mode: str, options: argparse.Namespace
) -> Iterator[Row]:
    """One part of all models: most bytes alive, then times."""
    calls = {name: model.calls[part, mode] for name, model in models.items()}
    yield from _memory(models, part, mode)
    tasks = [Task(name, call, options.threads) for name, call in calls.items()]
    pace = {name: getattr(options, name) for name in ("seconds", "rounds", "slow_rounds")}
    for name, figures in compare(tasks, **pace):
        yield {
            "measurement": "model",
            "label": part,
            "variant": name,
            **figures,
            "load_average": environment.load_average(),
        }


def _memory(models: dict[str, WholeModel], part: str, mode: str) -> Iterator[Row]:
    """Most bytes alive in all models, and while the parts of a network run that it has."""
    first = next(iter(models))
    found: dict[str, dict[str, PartMemory]] = {}
    for name, model in models.items():
        call = model.calls[part, mode]
        if part == "training step":
            call()  # makes the optimiser's averages, which stay
        peak, of_modules = live_tensors(call, model.modules if part in _NETWORKS else {})
        found[name] = {part: PartMemory(peak), **of_modules}
    for which in found[first]:
        for name, memories in found.items():
            peak = memories[which].peak
            yield {
                **_named(part, which, memories[which]),
                "variant": name,
                "extra_bytes": peak,
                "method": "live tensors",
                "ratio": {"to": first, "median": peak / found[first][which].peak},
                "load_average": environment.load_average(),
            }


def _named(part: str, which: str, memory: PartMemory) -> Row:
    """What a row of memory is about: a whole call, or a module in it."""
    if which == part:
        return {"measurement": "memory of models", "label": part}
    return {
        "measurement": "memory of modules",
        "label": f"{which} in a {part}",
        "kept_bytes": memory.kept,
    }
