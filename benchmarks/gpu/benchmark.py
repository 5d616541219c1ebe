"""The stages of `gpu-check` that take times: operators, single kernels, the GPU's own limits."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks import metrics
from benchmarks.costs import gpu_roofline
from benchmarks.gpu import plan
from benchmarks.gpu.stage import Stage, first_line
from benchmarks.measure import kernel_times
from benchmarks.subjects.registry import IMPLEMENTATIONS

_CEILING_ROUNDS = 5
_PROFILED = (
    ("paper-encoder", "float32"),
    ("paper-encoder", "bfloat16"),
    ("detr-encoder", "float32"),
)


def usual(stage: Stage) -> bool:
    """What the targets are about, and a little more."""
    return _time_cases(stage, plan.usual(stage.quick))


def matrix(stage: Stage) -> bool:
    """Every dtype, batch and spread."""
    return _time_cases(stage, plan.matrix(stage.quick))


def _time_cases(stage: Stage, cases: Sequence[plan.Case]) -> bool:
    """Times cases in order, and names what does not fit in the time; whether all were right."""
    tried = stage.read()["tried"]
    longest, late = 0.0, []
    for case in cases:
        if case.label in tried:
            continue
        if max(longest, case.seconds) > stage.left:
            late.append(case.label)
            continue
        began = time.monotonic()
        with stage.trying(case.label):
            if _time_case(case, stage):
                stage.write(done=case.label)
        longest = max(longest, time.monotonic() - began)
    if late:
        stage.note(f"no time for {len(late)}: {'; '.join(late)}")
    found = stage.read()
    return bool(found["done"]) and found["tried"] == found["done"]


def _time_case(case: plan.Case, stage: Stage) -> bool:
    """A row of every variant and mode; whether ours was right."""
    job = metrics.Job(
        case.workload,
        ("latency",),
        case.variants,
        threads=torch.get_num_threads(),
        rounds=stage.rounds,
        modes=case.modes,
        device=stage.device,
        note=lambda name, error: stage.note(f"{case.label}: {name}: {first_line(error)}"),
        is_detailed=True,
    )
    print(f"   {case.label}", flush=True)
    return not any("wrong" in row for row in stage.add(metrics.measure(job)))


def kernels(stage: Stage) -> bool:
    """The time of every kernel that our forward and backward launch."""
    for name, dtype in [("tiny", "float32")] if stage.quick else _PROFILED:
        workload = plan.adapt(name, dtype=dtype)
        prepared = IMPLEMENTATIONS["native"].prepare(workload, 0).to(stage.device)
        for mode in ("forward", "backward"):
            rows = kernel_times.measure(prepared.call(mode), stage.device)
            about = {"measurement": "kernels", "label": workload.label, "mode": mode}
            stage.add({**about, **row} for row in rows)
    return True


def ceilings(stage: Stage) -> bool:
    """What the GPU could give at most, for the shares on the page."""
    if stage.device == "cpu":
        stage.note("left out: it needs a GPU")
        return True
    for name, rate in gpu_roofline.measure(_CEILING_ROUNDS):
        print(f"   {name}: {rate['median'] / 1e9:.0f} G/s", flush=True)
        stage.add([{"measurement": "device ceiling", "label": name, "per_second": rate}])
    return True
