"""The stages of `gpu-check` that take times: operators, single kernels, the GPU's own limits."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks import metrics
from benchmarks.costs import gpu_roofline
from benchmarks.gpu import plan
from benchmarks.gpu.stage import LostDeviceError, Stage, first_line
from benchmarks.measure import kernel_times
from benchmarks.subjects.registry import IMPLEMENTATIONS

_CEILING_ROUNDS = 5
_PROFILED = (("paper-encoder", ("float32", "bfloat16")), ("detr-encoder", ("float32",)))


def usual(stage: Stage) -> bool:
    """What the targets are about, and a little more."""
    return _time_cases(stage, plan.cases(stage.quick, full=False))


def matrix(stage: Stage) -> bool:
    """Every dtype, batch and spread."""
    return _time_cases(stage, plan.cases(stage.quick, full=True))


def _time_cases(stage: Stage, cases: Sequence[plan.Case]) -> bool:
    """Times cases in order; what does not fit in the time is named."""
    tried = stage.record.read()["tried"]
    longest, late = 0.0, []
    for case in cases:
        if case.key in tried:
            continue
        if max(longest, case.seconds) > stage.left:
            late.append(case.label)
            continue
        began = time.monotonic()
        stage.record.write(trying=case.key)
        try:
            if _time_case(case, stage):
                stage.record.write(done=case.key)
        except LostDeviceError:
            raise
        except Exception as error:  # no memory, say: the other cases are worth having
            stage.record.note(f"{case.label}: {first_line(error)}")
            stage.check_device()
        longest = max(longest, time.monotonic() - began)
    if late:
        stage.record.note(f"no time for {len(late)}: {'; '.join(late)}")
    found = stage.record.read()
    return bool(found["done"]) and set(found["tried"]) == set(found["done"])


def _time_case(case: plan.Case, stage: Stage) -> bool:
    """A row of every variant and mode; whether ours was right."""

    def note(name: str, error: Exception) -> None:
        stage.record.note(f"{case.label}: {name}: {first_line(error)}")
        stage.check_device()

    job = metrics.Job(
        case.workload,
        ("latency",),
        case.variants,
        threads=torch.get_num_threads(),
        rounds=3 if stage.quick else stage.rounds,
        modes=case.modes,
        device=stage.device,
        note=note,
        is_detailed=True,
    )
    print(f"   {case.label}", flush=True)
    return not any("wrong" in row for row in stage.add(metrics.measure(job)))


def kernels(stage: Stage) -> bool:
    """The time of every kernel that our forward and backward launch."""
    for name, dtypes in [("tiny", ("float32",))] if stage.quick else _PROFILED:
        for dtype in dtypes:
            workload = plan.adapt(name, dtype=dtype)
            prepared = IMPLEMENTATIONS[plan.SUBJECT].prepare(workload, 0).to(stage.device)
            for mode in ("forward", "backward"):
                rows = kernel_times.measure(prepared.call(mode), stage.device)
                about = {"measurement": "kernels", "label": workload.label, "mode": mode}
                stage.add({**about, **row} for row in rows)
    return True


def ceilings(stage: Stage) -> bool:
    """What the GPU could give at most, for the shares on the page."""
    if stage.device == "cpu":
        stage.record.note("left out: it needs a GPU")
        return True
    for name, rate in gpu_roofline.measure(_CEILING_ROUNDS):
        print(f"   {name}: {rate['median'] / 1e9:.0f} G/s", flush=True)
        stage.add([{"measurement": "device ceiling", "label": name, "per_second": rate}])
    return True
