"""`python -m benchmarks defvis`: a whole model of examples/, deformable and dense.

The network, a video from bytes to results, and a training step, for the presets `paper` and
`vistr`: 36 frames of 300 x 533 pixels, one clip. Besides the most bytes that live tensors take at a
time, in all and by the modules of the network, or on a GPU the peak of PyTorch's allocator.
Times are wall-clock times; on a GPU a call ends when its work is done.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.commands import showing
from benchmarks.measure import environment, recording
from benchmarks.measure.memory import PartMemory, allocated, live_tensors
from benchmarks.measure.rows import Row
from benchmarks.measure.timing import Task, compare
from benchmarks.subjects.defvis_model import PARTS, prepare_parts

# Their modules are measured one by one.
_NETWORKS = ("network", "training step")
_PRESETS = ("paper", "vistr")
_SIZE = (300, 533)
_QUICK_SIZE = (64, 96)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="the small model, in seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default fp32"
    )
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
    """Measures and prints; the exit status is 0.

    Raises:
        SystemExit: There is no GPU.
        WrongAnswerError: A layer of ours computes something else than its reference.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no GPU")
    return showing.measure_and_show("defvis", options, _all(options))


def _all(options: argparse.Namespace) -> Iterator[Row]:
    subjects = Subjects(options.quick, options.precision, options.device, options.seed)
    pace = {name: getattr(options, name) for name in ("seconds", "rounds", "slow_rounds")}
    for part in filter(options.parts.__contains__, subjects.modes):
        yield from subjects.measure(part, options.threads, **pace)


class Subjects:
    """Both models, to be measured part by part.

    Args:
        quick: Small models.
        precision: "fp32", "bf16" or "fp16".
        device: "cpu" or "cuda".
        seed: Of weights and video.

    Attributes:
        modes: The mode of each part, in the order of the parts.

    Raises:
        WrongAnswerError: A layer of ours computes something else than its reference.
    """

    def __init__(self, quick: bool, precision: str, device: str, seed: int) -> None:
        configs = _small_configs() if quick else _paper_configs()
        size = _QUICK_SIZE if quick else _SIZE
        self._device = device
        self._models = {
            name: prepare_parts(
                dataclasses.replace(config, precision=precision), *size, seed, device
            )
            for name, config in configs.items()
        }
        first, config = next(iter(configs.items()))
        self._about = {
            "subject": first,
            "precision": precision,
            "frames": config.model.num_frames,
            "pixels": [*size],
        }
        self._label = " x ".join(map(str, (config.model.num_frames, *size)))
        if precision != "fp32":
            self._label += f", {precision}"
        self.modes = dict(self._models[first].calls.keys())  # of pairs

    def measure(self, part: str, threads: int, **pace: Any) -> Iterator[Row]:
        """Rows of one part of all models, peak memory first.

        Args:
            part: One of `PARTS`.
            threads: torch's threads.
            pace: As of `measure.timing.compare`.
        """
        mode = self.modes[part]
        for row in self._measure(part, mode, threads, pace):
            yield {
                **self._about,
                "threads": threads,
                "mode": mode,
                **row,
                "label": f"{row['label']}, {self._label}",
                "load_average": environment.load_average(),
            }

    def _measure(self, part: str, mode: str, threads: int, pace: dict[str, Any]) -> Iterator[Row]:
        yield from self._memory(part, mode)
        calls = {name: model.calls[part, mode] for name, model in self._models.items()}
        tasks = [Task(name, call, threads) for name, call in calls.items()]
        for name, figures in compare(tasks, **pace):
            yield {"measurement": "model", "label": part, "variant": name, **figures}

    def _memory(self, part: str, mode: str) -> Iterator[Row]:
        """Most bytes alive in all models, and while the parts of a network run that it has."""
        found: dict[str, dict[str, PartMemory]] = {}
        for name, model in self._models.items():
            call = model.calls[part, mode]
            if part == "training step":
                call()  # makes the optimiser's averages, which stay
            of_modules: dict[str, PartMemory] = {}
            if self._device == "cpu":
                modules = model.modules if part in _NETWORKS else {}
                peak, of_modules = live_tensors(call, modules)
            else:
                peak = allocated(call)
            found[name] = {part: PartMemory(peak), **of_modules}
        first = self._about["subject"]
        for which in found[first]:
            for name, memories in found.items():
                peak = memories[which].peak
                yield {
                    **_named(part, which, memories[which]),
                    "variant": name,
                    "extra_bytes": peak,
                    "method": "live tensors" if self._device == "cpu" else "allocator",
                    "ratio": {"to": first, "median": peak / found[first][which].peak},
                }


def _paper_configs() -> dict[str, Any]:
    from defvis.presets import preset

    return {name: preset(name) for name in _PRESETS}


def _small_configs() -> dict[str, Any]:
    """The default of the example, and the same with dense attention."""
    from defvis.presets import preset

    small = preset("small")
    dense = dataclasses.replace(small.model, encoder_attention="dense", decoder_attention="dense")
    return {"small": small, "small, dense": dataclasses.replace(small, model=dense)}


def _named(part: str, which: str, memory: PartMemory) -> Row:
    """What a row of memory is about: a whole call, or a module in it."""
    if which == part:
        return {"measurement": "memory of models", "label": part}
    return {
        "measurement": "memory of modules",
        "label": f"{which} in a {part}",
        "kept_bytes": memory.kept,
    }
