"""`python -m benchmarks model`: whole models of examples/, deformable and dense.

A layer of encoder and decoder, the network, a video from bytes to results, and a training step, for
the presets `paper` and `vistr`: 36 frames of 300 x 533 pixels, one clip, float32. Besides the most
bytes that live tensors take at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from . import environment, recording, report
from .bars import Row
from .measurements import compare
from .timing import Task
from .whole_models import PARTS, Parts, prepare_parts

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
        help=f"by default all: {', '.join(PARTS)}; on two cores the last three take half an hour",
    )
    recording.add_arguments(parser, seconds=20)
    recording.add_slow_rounds(parser, default=None)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Measures and prints; the exit status is 0."""
    report.show(recording.Recorder("model", options, arguments), _all(options))
    return 0


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
    for part, mode in models[first]:
        if part not in options.parts:
            continue
        label = f"{part}, {frames} x {height} x {width}"
        yield from (
            {**about, "label": label, "mode": mode, **row}
            for row in _measure(models, part, mode, options)
        )


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
    models: dict[str, Parts], part: str, mode: str, options: argparse.Namespace
) -> Iterator[Row]:
    """One part of all models: most bytes alive, then times."""
    calls = {name: parts[part, mode] for name, parts in models.items()}
    peaks = {name: _live_bytes(call) for name, call in calls.items()}
    first = next(iter(peaks.values()))
    for name, peak in peaks.items():
        yield {
            "measurement": "memory of models",
            "variant": name,
            "extra_bytes": peak,
            "method": "live tensors",
            "ratio": {"to": next(iter(peaks)), "median": peak / first},
            "load_average": environment.load_average(),
        }
    tasks = [Task(name, call, options.threads) for name, call in calls.items()]
    timed = compare(tasks, options.seconds, options.rounds, options.slow_rounds)
    for name, figures in timed:
        yield {
            "measurement": "model",
            "variant": name,
            **figures,
            "load_average": environment.load_average(),
        }


def _live_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors made in a call that are alive at a time.

    Neither weights and inputs, which are there before, nor scratch of kernels are part of it.
    """
    from defvis.memory import LiveStorages

    call()  # the first training step makes the optimiser's averages, which stay
    with LiveStorages() as live:
        call()
    return int(live.peak)
