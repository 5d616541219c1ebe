"""`python -m benchmarks models`: models of Hugging Face transformers, plain and with the operator.

Inference and a training step of each family on one image, float32: first whether both answer the
same, then the most bytes that live tensors take at a time, then the processor time.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator

from benchmarks.commands import showing
from benchmarks.measure import environment, recording
from benchmarks.measure.memory import live_tensors
from benchmarks.measure.rows import MODES, Row
from benchmarks.measure.timing import CpuClock, Task, compare
from benchmarks.subjects.transformers_models import FAMILIES, VARIANTS, Prepared, prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="shallow models, in a minute")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=FAMILIES,
        default=tuple(FAMILIES),
        metavar="MODEL",
        help=f"by default all: {', '.join(FAMILIES)}",
    )
    recording.add_arguments(parser, seconds=10)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 0.

    Raises:
        WrongAnswerError: A model answers differently with the operator; it was not timed.
        SystemExit: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit("transformers is not installed: pip install 'stdeform[examples]'")
    rows = (row for name in options.models for row in _measure(name, options))
    return showing.measure_and_show("models", options, rows)


def _measure(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """One family in both modes: most bytes alive, then times."""
    prepared = prepare(name, options.seed, small=options.quick)
    family = FAMILIES[name]
    pixels = family.small_pixels if options.quick else family.pixels
    about = {
        "label": f"{family.title}, {pixels} px",
        "subject": VARIANTS[0],
        "threads": options.threads,
    }
    pace = {name: getattr(options, name) for name in ("seconds", "rounds")}
    for mode in MODES:
        yield from ({**about, "mode": mode, **row} for row in _memory(prepared, mode))
        tasks = [
            Task(variant, each.call(mode), options.threads) for variant, each in prepared.items()
        ]
        for variant, figures in compare(tasks, CpuClock(of_process=True), **pace):
            yield {
                "measurement": "transformers model",
                **about,
                "mode": mode,
                "variant": variant,
                **figures,
                "load_average": environment.load_average(),
            }


def _memory(prepared: dict[str, Prepared], mode: str) -> Iterator[Row]:
    peaks = {variant: live_tensors(each.call(mode), {})[0] for variant, each in prepared.items()}
    for variant, peak in peaks.items():
        yield {
            "measurement": "memory of transformers models",
            "variant": variant,
            "extra_bytes": peak,
            "method": "live tensors",
            "ratio": {"to": VARIANTS[0], "median": peak / peaks[VARIANTS[0]]},
            "load_average": environment.load_average(),
        }
