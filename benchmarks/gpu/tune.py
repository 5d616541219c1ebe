"""`python -m benchmarks tune`: which constants and choices of the CUDA kernels are fastest here.

Builds the variants of `kernel_variants.py` beside the module that is installed, times all of them
and all knobs on the same inputs, and says for every workload what wins and what to change for it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from benchmarks.gpu import kernel_variants, variant_build
from benchmarks.gpu.gpu_job import Job, LostDeviceError, first_line
from benchmarks.gpu.gpu_record import Record
from benchmarks.measure import graph_timing
from benchmarks.measure.processes import ROOT
from benchmarks.measure.timing import ratios, spread
from benchmarks.report.bars import Row
from benchmarks.report.markdown import table
from benchmarks.subjects.base import Case, poison
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload
from stdeform import _native
from stdeform.testing import excess

INSTALLED = "installed"
_FOLDER = ROOT / "build" / "variants"
_MODES = (kernel_variants.FORWARD, kernel_variants.BACKWARD)
_WORKLOADS = ("paper-encoder", "paper-decoder", "detr-encoder", "paper-encoder-large")
_GAIN = 0.01  # what a change must bring to be worth a line


class Choice(NamedTuple):
    """What is timed: kernels, and what is forced on them."""

    variant: str
    forced: tuple[tuple[str, int], ...]

    @property
    def label(self) -> str:
        """As it is reported."""
        knobs = ", ".join(f"{name} {value}" for name, value in self.forced)
        return f"{self.variant}, {knobs}" if knobs else self.variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one variant, a tiny problem")
    parser.add_argument("--rounds", type=int, default=15, help="of timing; default 15")
    parser.add_argument("--seconds", type=float, default=600, help="for all; default 600")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "tune", help="a folder")


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Builds, times and tells.

    Returns:
        The exit status: 1 if something could not be built or timed.
    """
    record = Record(options.output.absolute(), "tune")
    record.begin(datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    start = time.monotonic()
    job = Job(
        device=options.device,
        quick=options.quick,
        deadline=start + options.seconds,
        rounds=options.rounds,
        output=options.output.absolute(),
        record=record,
        words=("tune",),
        prebuilt=None,
    )
    passed = build_variants(job) and time_variants(job)
    record.end(passed=passed, seconds=time.monotonic() - start)
    rows = [row for row in record.read()["rows"] if "ratio" in row]
    print("\n\n".join((times(rows), winners(rows))))
    return int(not passed)


def build_variants(job: Job) -> bool:
    """The stage that builds them."""
    # One that is what is there anyway has nothing to build.
    chosen = [each for each in kernel_variants.VARIANTS if each.files()][: 1 if job.quick else None]
    try:
        built = variant_build.build(chosen, _FOLDER, job.log, job.left)
    except variant_build.NotBuiltError as error:
        job.record.note(str(error))
        return job.device == "cpu"
    names = {module.parent.name for module in built}
    failed = [each.name for each in chosen if each.slug not in names]
    job.record.row({"built": sorted(names)})
    for name, kernels in variant_build.spills(job.log.read_text(errors="replace")).items():
        job.record.note(f"{name}: {kernels} kernels spill registers")
    if failed:
        job.record.note(f"not built, see {job.log.name}: {', '.join(failed)}")
    return not failed


def time_variants(job: Job) -> bool:
    """The stage that times them."""
    modules = load(_FOLDER)
    earlier = [row for row in job.record.read()["rows"] if "ratio" in row]
    for workload in workloads(job.quick):
        prepared = IMPLEMENTATIONS["native"].prepare(workload, 0).to(job.device)
        for mode in _MODES:
            if any((row["label"], row["mode"]) == (workload.label, mode) for row in earlier):
                continue
            began = time.monotonic()
            try:
                for row in _compare(workload, prepared, mode, modules, job):
                    job.record.row(row)
            except LostDeviceError:
                raise
            except Exception as error:  # no memory, say: the other workloads are worth having
                job.record.note(f"{workload.label}, {mode}: {first_line(error)}")
                job.check_device()
            if job.left < 1.5 * (time.monotonic() - began):
                job.record.note(f"no time for what comes after {workload.label}, {mode}")
                return True
    return True


def workloads(quick: bool) -> list[Workload]:
    """Each in both dtypes that variants are compiled for."""
    names = ("tiny",) if quick else _WORKLOADS
    return [
        dataclasses.replace(WORKLOADS[name], dtype=dtype)
        for name in names
        for dtype in ("float32", "bfloat16")
    ]


def load(folder: Path) -> dict[str, ModuleType]:
    """The variants that are built, each a module of its own beside the installed one."""
    modules = {INSTALLED: _installed()}
    for variant in kernel_variants.VARIANTS:
        path = folder / variant.slug / "_C.so"
        if path.is_file():
            # A name of its own: pybind11 hands out a module that it knows by its name.
            spec = importlib.util.spec_from_file_location(f"{variant.slug}._C", path)
            assert spec is not None
            assert spec.loader is not None
            modules[variant.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[variant.name])
    return modules


def _installed() -> ModuleType:
    if _native._C is None:
        raise RuntimeError(_native.missing("cpu"))
    return _native._C


def choices(mode: str, built: Sequence[str]) -> list[Choice]:
    """What is timed in a mode; what is installed comes first, nothing forced."""
    by_name = {each.name: each for each in kernel_variants.VARIANTS}
    variants = [name for name in built if name in by_name and by_name[name].mode == mode]
    forced = [tuple(knobs.items()) for knobs in kernel_variants.knobs(mode)]
    return [*(Choice(INSTALLED, each) for each in forced), *(Choice(each, ()) for each in variants)]


@contextlib.contextmanager
def using(module: ModuleType, forced: Mapping[str, int]) -> Iterator[None]:
    """Lets `stdeform` call another module meanwhile, with some choices forced."""
    before, _native._C = _native._C, module
    _native.options.cuda_tuning = forced
    try:
        yield
    finally:
        _native._C = before
        _native.options.cuda_tuning = {}


def _compare(
    workload: Workload,
    prepared: Case,
    mode: str,
    modules: Mapping[str, ModuleType],
    job: Job,
) -> Iterator[Row]:
    """A row of every choice; a wrong one is timed too, and says so."""
    replays, wrong = {}, {}
    expected: list[Tensor] = []
    stage = job.record.read()
    for choice in choices(mode, list(modules)):
        tried = f"{workload.label}, {mode}: {choice.label}"
        if tried in stage["tried"] and tried not in stage["done"]:
            job.record.note(f"{tried}: it has ended the process that tried it")
            continue
        job.record.trying(tried)
        with using(modules[choice.variant], dict(choice.forced)):
            try:
                found = _answers(prepared, mode)
                expected = expected or [tensor.double() for tensor in found]
                wrong[choice] = max(map(_error, found, expected)) > 2
                replays[choice] = graph_timing.capture(prepared, mode, job.device)
            except (RuntimeError, ValueError) as error:
                job.record.note(f"{tried}: {first_line(error)}")
                job.check_device()
        job.record.done(tried)
    if not replays:
        return
    labels = {choice.label: replay for choice, replay in replays.items()}
    samples = graph_timing.time_replays(labels, job.device, job.rounds)
    usual = samples[next(iter(samples))]
    for choice in replays:
        own = samples[choice.label]
        yield {
            "label": workload.label,
            "mode": mode,
            "variant": choice.variant,
            "forced": dict(choice.forced),
            "wrong": wrong[choice],
            "seconds": dataclasses.asdict(spread(own)),
            "rounds": own,
            "ratio": dataclasses.asdict(spread(ratios(own, usual))),
        }


def _answers(prepared: Case, mode: str) -> list[Tensor]:
    poison((prepared.grad_out, *prepared.inputs))
    if mode == kernel_variants.FORWARD:
        return [prepared.forward()]
    return [tensor.detach() for tensor in prepared.forward_backward()]


def _error(actual: Tensor, expected: Tensor) -> float:
    """As a multiple of the tolerance of gradients, which is the wider one."""
    return excess(actual, expected.to(actual.device), "gradient")


def winners(rows: Sequence[Row]) -> str:
    """Markdown: for every workload and mode the fastest choice, and what to change for it."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["label"], row["mode"]), []).append(row)
    body = []
    for (label, mode), group in groups.items():
        right = [row for row in group if not row["wrong"]]
        if not right:
            continue
        best = min(right, key=lambda row: float(row["ratio"]["median"]))
        share = best["ratio"]["median"]
        gains = share < 1 - _GAIN and best["ratio"]["q3"] < 1
        body.append(
            [
                label,
                mode,
                f"{1e6 * group[0]['seconds']['median']:.1f}",
                f"{1e6 * best['seconds']['median']:.1f}",
                f"{share:.3f}",
                kernel_variants.say(best["variant"], best["forced"]) if gains else "nothing",
            ]
        )
    return (
        table(["workload", "mode", "now us", "best us", "of now", "change"], body) if body else ""
    )


def times(rows: Sequence[Row]) -> str:
    """Markdown: a line for every choice, and for every workload its time as a share of now."""
    columns = list(dict.fromkeys((row["label"], row["mode"]) for row in rows))
    lines: dict[str, dict[tuple[str, str], str]] = {}
    for row in rows:
        name = Choice(row["variant"], tuple(row["forced"].items())).label
        shown = f"{row['ratio']['median']:.3f}" + " WRONG" * row["wrong"]
        lines.setdefault(name, {})[row["label"], row["mode"]] = shown
    heads = [f"{label}, {mode}" for label, mode in columns]
    body = [
        [name, *(cells.get(column, "-") for column in columns)] for name, cells in lines.items()
    ]
    return table(["choice", *heads], body) if body else ""
