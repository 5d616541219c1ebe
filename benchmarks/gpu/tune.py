"""The stages `variants` and `sweep` of `gpu-check`: which constants and choices are fastest here.

Builds the variants of `kernel_variants.py` beside the installed module, times all of them and all
knobs on the same inputs, and says for every workload what wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu import kernel_variants, variant_build
from benchmarks.gpu.stage import LostDeviceError, Stage, first_line
from benchmarks.measure.processes import ROOT
from benchmarks.measure.rows import Row
from benchmarks.measure.timing import Task, clock_of, compare
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
_WARM_UP = 3  # calls before a graph is captured


class Choice(NamedTuple):
    """What is timed: kernels, and forced values of knobs."""

    variant: str
    forced: tuple[tuple[str, int], ...]

    @property
    def label(self) -> str:
        """As it is reported."""
        knobs = ", ".join(f"{name} {value}" for name, value in self.forced)
        return f"{self.variant}, {knobs}" if knobs else self.variant


def build_variants(stage: Stage) -> bool:
    """The stage that builds them."""
    # One that is what is there anyway has nothing to build.
    chosen = [each for each in kernel_variants.VARIANTS if each.files()][
        : 1 if stage.quick else None
    ]
    try:
        built = variant_build.build(chosen, _FOLDER, stage.log, stage.left)
    except variant_build.NotBuiltError as error:
        stage.record.note(str(error))
        return stage.device == "cpu"
    names = {module.parent.name for module in built}
    failed = [each.name for each in chosen if each.slug not in names]
    stage.record.write(row={"built": sorted(names)})
    for name, kernels in variant_build.spills(stage.log.read_text(errors="replace")).items():
        stage.record.note(f"{name}: {kernels} kernels spill registers")
    if failed:
        stage.record.note(f"not built, see gpu-check.log: {', '.join(failed)}")
    return not failed


def time_variants(stage: Stage) -> bool:
    """The stage that times them."""
    modules = load(_FOLDER)
    done = stage.record.read()["done"]
    for workload in workloads(stage.quick):
        prepared = IMPLEMENTATIONS["native"].prepare(workload, 0).to(stage.device)
        for mode in _MODES:
            about = f"{workload.label}, {mode}"
            if about in done:
                continue
            began = time.monotonic()
            try:
                if stage.add(_compare(workload, prepared, mode, modules, stage)):
                    stage.record.write(done=about)
            except LostDeviceError:
                raise
            except Exception as error:  # no memory, say: the other workloads are worth having
                stage.record.note(f"{about}: {first_line(error)}")
                stage.check_device()
            if stage.left < 1.5 * (time.monotonic() - began):
                stage.record.note(f"no time for what comes after {about}")
                return True
    return True


def workloads(quick: bool) -> list[Workload]:
    """Each in both dtypes that variants are compiled for."""
    return [
        dataclasses.replace(WORKLOADS[name], dtype=dtype)
        for name in (("tiny",) if quick else _WORKLOADS)
        for dtype in ("float32", "bfloat16")
    ]


def load(folder: Path) -> dict[str, ModuleType]:
    """The variants that are built, each a module of its own beside the installed one."""
    modules = {INSTALLED: _installed()}
    for variant in kernel_variants.VARIANTS:
        path = folder / variant.slug / "_C.so"
        if path.is_file():
            # A name of its own: pybind11 returns a module that it knows by its name.
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
    forced = [
        ((knob.name, value),)
        for knob in kernel_variants.KNOBS
        if knob.mode == mode
        for value in knob.values
    ]
    alone = [Choice(name, ()) for name in variants]
    return [Choice(INSTALLED, ()), *(Choice(INSTALLED, each) for each in forced), *alone]


@contextlib.contextmanager
def using(module: ModuleType, forced: Mapping[str, int]) -> Iterator[None]:
    """Lets `stdeform` call another module meanwhile, with some choices forced."""
    forcing = mock.patch.object(_native.options, "cuda_tuning", forced)
    with mock.patch.object(_native, "_C", module), forcing:
        yield


def capture(prepared: Case, mode: str, device: str) -> Callable[[], object]:
    """A call as a CUDA graph, which is timed whatever the host does; on the CPU the call itself."""
    if device == "cpu":
        return prepared.call(mode)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Autograd runs a backward on the stream where its forward ran, and adds to a leaf on the one
    # that first saw it: both are the one that captures, so the leaves are new.
    with torch.cuda.stream(stream):
        run = prepared.to(device).call(mode)
        for _ in range(_WARM_UP):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # The present stream is made current again even if capture fails.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, stream=stream),
    ):
        run()
    graph.replay()
    torch.cuda.synchronize()

    def replay() -> object:
        graph.replay()
        return run  # which keeps what the graph reads

    return replay


def _compare(
    workload: Workload,
    prepared: Case,
    mode: str,
    modules: Mapping[str, ModuleType],
    stage: Stage,
) -> Iterator[Row]:
    """A row of every choice; a wrong one is timed too, and marked."""
    replays, wrong = {}, {}
    expected: list[Tensor] = []
    before = stage.record.read()
    for choice in choices(mode, list(modules)):
        tried = f"{workload.label}, {mode}: {choice.label}"
        if tried in before["tried"] and tried not in before["done"]:
            stage.record.note(f"{tried}: it has ended the process that tried it")
            continue
        stage.record.write(trying=tried)
        with using(modules[choice.variant], dict(choice.forced)):
            try:
                found = _answers(prepared, mode)
                expected = expected or [tensor.double() for tensor in found]
                wrong[choice] = max(map(_error, found, expected)) > 2
                replays[choice] = capture(prepared, mode, stage.device)
            except (RuntimeError, ValueError) as error:
                stage.record.note(f"{tried}: {first_line(error)}")
                stage.check_device()
        stage.record.write(done=tried)
    tasks = [Task(choice.label, replay) for choice, replay in replays.items()]
    timed = compare(tasks, clock_of(stage.device, replays=True), rounds=stage.rounds)
    for choice, (_, figures) in zip(replays, timed, strict=True):
        yield {
            "measurement": "tuning",
            "label": workload.label,
            "mode": mode,
            "variant": choice.variant,
            "forced": dict(choice.forced),
            **({"wrong": "its results are others"} if wrong[choice] else {}),
            **figures,
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
    """Markdown: for every workload and mode the fastest choice, if it gains anything."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in _tuned(rows):
        groups.setdefault((row["label"], row["mode"]), []).append(row)
    body = []
    for (label, mode), group in groups.items():
        right = [row for row in group if "wrong" not in row]
        if not right:
            continue
        best = min(right, key=lambda row: float(row["ratio"]["median"]))
        share = best["ratio"]["median"]
        gains = share < 1 - _GAIN and best["ratio"]["q3"] < 1
        micro = [f"{1e6 * row['seconds']['median']:.1f}" for row in (group[0], best)]
        change = _choice(best).label if gains else "nothing"
        body.append([label, mode, *micro, f"{share:.3f}", change])
    return table(["workload", "mode", "now us", "best us", "of now", "change"], body)


def times(rows: Sequence[Row]) -> str:
    """Markdown: a line for every choice, and for every workload its time as a share of now."""
    rows = _tuned(rows)
    columns = list(dict.fromkeys((row["label"], row["mode"]) for row in rows))
    lines: dict[str, dict[tuple[str, str], str]] = {}
    for row in rows:
        shown = f"{row['ratio']['median']:.3f}" + " WRONG" * ("wrong" in row)
        lines.setdefault(_choice(row).label, {})[row["label"], row["mode"]] = shown
    heads = [f"{label}, {mode}" for label, mode in columns]
    body = [
        [name, *(cells.get(column, "-") for column in columns)] for name, cells in lines.items()
    ]
    return table(["choice", *heads], body)


def _choice(row: Row) -> Choice:
    return Choice(row["variant"], tuple(row["forced"].items()))


def _tuned(rows: Sequence[Row]) -> list[Row]:
    """The last row of every choice."""
    keys = ("label", "mode", "variant", "forced")
    tuned = [row for row in rows if row["measurement"] == "tuning"]
    return list({tuple(str(row[key]) for key in keys): row for row in tuned}.values())
