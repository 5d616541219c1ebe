"""`python -m benchmarks export`: exported models in ONNX Runtime and OpenVINO.

Each is exported with our operator, by default and in both forms, and with attention written with
`grid_sample`; in PyTorch both run beside them. First whether all answer the same, then the memory
of a call, then the processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import showing
from benchmarks.measure import environment, isolated, recording
from benchmarks.measure.memory import MALLOC, Peak
from benchmarks.measure.rows import MODES, Row
from benchmarks.measure.timing import CpuClock, Task, compare
from benchmarks.subjects import exported, runtimes
from benchmarks.subjects.detector import PLAIN
from benchmarks.subjects.export_problems import PROBLEMS, QUICK
from benchmarks.subjects.exported import NEEDED, Prepared, Variant, prepare
from stdeform import _native


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="tiny models, in most of a minute")
    parser.add_argument(
        "--problems",
        nargs="+",
        choices=PROBLEMS,
        metavar="PROBLEM",
        help=f"by default all: {', '.join(PROBLEMS)}; quick ones: {', '.join(QUICK)}",
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=runtimes.RUNTIMES,
        default=tuple(runtimes.RUNTIMES),
        metavar="RUNTIME",
        help=f"beside PyTorch; by default all: {', '.join(runtimes.RUNTIMES)}",
    )
    recording.add_arguments(parser, seconds=20)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 0.

    Raises:
        WrongAnswerError: A model answers differently where it was exported to; it was not timed.
        SystemExit: A package is not installed, or there is no native kernel.
    """
    for name in (*NEEDED, *options.runtimes):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"{name} is not installed: pip install 'stdeform[test]'")
    if missing := _native.missing("cpu"):
        raise SystemExit(missing)
    chosen = QUICK if options.quick else PROBLEMS
    names = [name for name in options.problems or chosen if name in chosen]
    rows = (row for name in names for row in _measure(name, options))
    return showing.measure_and_show("export", options, rows)


def _measure(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """One problem: memory, then times."""
    problem = (QUICK if options.quick else PROBLEMS)[name]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(problem, options.runtimes, options.threads, options.seed, Path(folder))
        for variant, refusal in prepared.refusals.items():
            print(f"-- {problem.label}: {variant} is left out, {refusal}", flush=True)
        about = {"label": problem.label, "subject": PLAIN, "threads": options.threads}
        for row in (*_memory(name, prepared, options), *_times(prepared, options)):
            yield {**about, "mode": MODES[0], **row, "load_average": environment.load_average()}


def _memory(name: str, prepared: Prepared, options: argparse.Namespace) -> Iterator[Row]:
    peaks = {each.name: _peak(name, each, prepared, options) for each in prepared.variants}
    for variant in prepared.variants:
        own, plain = peaks[variant.name], peaks.get(variant.plain_name)
        ratio = own.extra_bytes / plain.extra_bytes if plain and plain.extra_bytes else None
        yield {
            "measurement": "memory of exported models",
            "variant": variant.name,
            **dataclasses.asdict(own),
            "ratio": {"to": variant.plain_name, "median": ratio},
        }


def _peak(name: str, variant: Variant, prepared: Prepared, options: argparse.Namespace) -> Peak:
    request: Row = {"threads": options.threads}
    if variant.file is None:
        function = f"{exported.__name__}:peak_here"
        request |= {"problem": name, "quick": options.quick}
        request |= {"form": variant.form, "seed": options.seed}
    else:
        function = f"{runtimes.__name__}:peak_here"
        request |= {"runtime": variant.runtime, "path": str(variant.file)}
        request |= {"inputs": str(prepared.inputs_file)}
    peaks, problem = isolated.call(function, request, environment=MALLOC)
    if problem:
        raise RuntimeError(f"memory of {variant.name} could not be measured: {problem}")
    return Peak(**peaks[0])


def _times(prepared: Prepared, options: argparse.Namespace) -> Iterator[Row]:
    variants = {each.name: each for each in prepared.variants}
    tasks = [Task(name, each.call, options.threads) for name, each in variants.items()]
    to = {
        name: each.plain_name if each.plain_name in variants else name
        for name, each in variants.items()
    }
    pace = {name: getattr(options, name) for name in ("seconds", "rounds")}
    for name, figures in compare(tasks, CpuClock(of_process=True), to=to, **pace):
        variant = variants[name]
        if variant.plain_name not in variants:  # the runtime cannot run it
            figures["ratio"] = {"to": variant.plain_name, "median": None}
        yield {
            "measurement": "exported model",
            "variant": name,
            "version": variant.version,
            "nodes": variant.num_nodes,
            "file_bytes": variant.file and variant.file.stat().st_size,
            **figures,
        }
