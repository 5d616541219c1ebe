"""The stage `sweep` of `gpu-check`: which variant of the kernels is fastest here.

Times all variants that are built, and all that are forced at run time, on the same inputs, and says
for every workload what wins.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu import plan
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.variants import INSTALLED, VARIANTS, Variant
from benchmarks.measure.rows import Row
from benchmarks.measure.timing import Task, clock_of, compare
from benchmarks.report.markdown import table
from benchmarks.subjects.base import Case, poison
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import Workload
from stdeform import _native
from stdeform.testing import excess

_WORKLOADS = ("paper-encoder", "paper-decoder", "detr-encoder", "paper-encoder-large")
_GAIN = 0.01  # what a change must bring to be worth a line
_WARM_UP = 3  # calls before a graph is captured


def sweep(stage: Stage) -> bool:
    """Every workload in both dtypes that variants are compiled for, forward and backward."""
    modules = load()
    done = stage.read()["done"]
    names = ("tiny",) if stage.quick else _WORKLOADS
    for name, dtype in itertools.product(names, ("float32", "bfloat16")):
        workload = plan.adapt(name, dtype=dtype)
        prepared = IMPLEMENTATIONS["native"].prepare(workload, 0).to(stage.device)
        for mode in ("forward", "backward"):
            about = f"{workload.label}, {mode}"
            if about in done:
                continue
            began = time.monotonic()
            with stage.trying(about):
                if stage.add(_compare(workload, prepared, mode, modules, stage)):
                    stage.write(done=about)
            if stage.left < 1.5 * (time.monotonic() - began):
                stage.note(f"no time for what comes after {about}")
                return True
    return True


def load() -> dict[Variant, Any]:
    """What can be timed: the installed module first, the others beside it."""
    modules: dict[Variant, Any] = {INSTALLED: _native._C}
    for variant in VARIANTS:
        if not variant.file:
            modules[variant] = _native._C
        elif variant.module.is_file():
            # A name of its own: pybind11 returns a module that it knows by its name.
            name = f"{variant.module.parent.name}._C"
            spec = importlib.util.spec_from_file_location(name, variant.module)
            assert spec is not None
            assert spec.loader is not None
            modules[variant] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[variant])
    return modules


def _compare(
    workload: Workload, prepared: Case, mode: str, modules: dict[Variant, Any], stage: Stage
) -> Iterator[Row]:
    """A row of every variant; a wrong one is timed too, and marked."""
    tasks, wrong = [], {}
    expected: list[Tensor] = []
    before = stage.read()
    for variant, module in modules.items():
        if variant.mode not in ("", mode):
            continue
        tried = f"{workload.label}, {mode}: {variant.name}"
        if tried in before["tried"] and tried not in before["done"]:
            stage.note(f"{tried}: it has ended the process that tried it")
            continue
        with stage.trying(tried), using(module, variant):
            found = _answers(prepared, mode)
            expected = expected or [tensor.double() for tensor in found]
            # The tolerance of gradients is the wider one; two answers may differ by twice that.
            errors = [excess(*pair, "gradient") for pair in zip(found, expected, strict=True)]
            wrong[variant.name] = max(errors) > 2
            tasks.append(Task(variant.name, capture(prepared, mode, stage.device)))
        stage.write(done=tried)
    clock = clock_of(stage.device, replays=True)
    for name, figures in compare(tasks, clock, rounds=stage.rounds):
        row = {"measurement": "tuning", "label": workload.label, "mode": mode, "variant": name}
        yield {**row, **({"wrong": "its results are others"} if wrong[name] else {}), **figures}


def _answers(prepared: Case, mode: str) -> list[Tensor]:
    poison((prepared.grad_out, *prepared.inputs))
    if mode == "forward":
        return [prepared.forward()]
    # Without a graph: its leaves would be added to on the stream of this call, not of a capture.
    return [tensor.detach() for tensor in prepared.forward_backward()]


@contextlib.contextmanager
def using(module: ModuleType, variant: Variant) -> Iterator[None]:
    """Lets `stdeform` call another module meanwhile, with what the variant forces."""
    forcing = mock.patch.object(_native.options, "cuda_tuning", variant.forced)
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


def winners(rows: Sequence[Row]) -> str:
    """Markdown: for every workload and mode the fastest variant, if it gains anything."""
    body = []
    for about, group in _tuned(rows).items():
        right = [row for row in group.values() if "wrong" not in row]
        now = group.get(INSTALLED.name)
        if now is None or not right:
            continue
        best = min(right, key=lambda row: float(row["ratio"]["median"]))
        share = best["ratio"]["median"]
        gains = share < 1 - _GAIN and best["ratio"]["q3"] < 1
        micro = [f"{1e6 * row['seconds']['median']:.1f}" for row in (now, best)]
        body.append([*about, *micro, f"{share:.3f}", best["variant"] if gains else "nothing"])
    return table(["workload", "mode", "now us", "best us", "of now", "change"], body)


def shares(rows: Sequence[Row]) -> str:
    """Markdown: a line for every variant, and for every workload its time as a share of now."""
    groups = _tuned(rows)
    names = dict.fromkeys(name for group in groups.values() for name in group)
    body = [[name, *(_share(group.get(name)) for group in groups.values())] for name in names]
    return table(["variant", *map(", ".join, groups)], body)


def _share(row: Row | None) -> str:
    return f"{row['ratio']['median']:.3f}" + " WRONG" * ("wrong" in row) if row else "-"


def _tuned(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """By workload and mode the last row of every variant."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["measurement"] == "tuning":
            groups.setdefault((row["label"], row["mode"]), {})[row["variant"]] = row
    return groups
