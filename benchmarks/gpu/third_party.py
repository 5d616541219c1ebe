"""The stage `third-party` of `gpu-check`: other libraries beside ours, each in its own process.

One may crash, hang or fill the GPU, which must not affect what is measured next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from benchmarks import metrics
from benchmarks.gpu.stage import Stage, first_line
from benchmarks.measure import isolated
from benchmarks.measure.rows import ALL_MODES, Row
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY

_LEAST_SECONDS = 10  # that a library is begun with


def run(stage: Stage) -> bool:
    """Every library; one that cannot be timed is named with its reason."""
    for name in THIRD_PARTY:
        rows, reason = _call(name, stage)
        stage.add(rows)
        stage.write(row={"library": name, "reason": reason})
    return True


def _call(name: str, stage: Stage) -> tuple[list[Row], str]:
    """Rows of a library and ours, and why there are none, or none of some mode; "" if there are."""
    if not THIRD_PARTY[name].is_installed:
        return [], "not installed"
    seconds = stage.left
    if seconds < _LEAST_SECONDS:
        return [], "no time was left"
    request = {"name": name, "device": stage.device, "quick": stage.quick, "rounds": stage.rounds}
    answers, problem = isolated.call(f"{__name__}:time_here", request, seconds=seconds)
    reasons = [answer["reason"] for answer in answers if "reason" in answer]
    rows = [answer for answer in answers if "reason" not in answer]
    return rows, problem or "; ".join(reasons)


def time_here(name: str, device: str, quick: bool, rounds: int) -> Iterator[Row]:
    """The rows of a library and ours, and what is missing as "reason"."""
    workload = THIRD_PARTY[name].workload
    if quick:
        workload = dataclasses.replace(workload.shrunk(), name=f"{workload.name}-shrunk")
    names = ("native", name)
    try:
        cases = {each: IMPLEMENTATIONS[each].prepare(workload, 0).to(device) for each in names}
        theirs = {name: cases[name]}
        check_correctness(workload, {"native": cases["native"]})
        check_correctness(workload, theirs, gradients=False)
        modes: tuple[str, ...] = ALL_MODES
        try:
            check_correctness(workload, theirs)
        except Exception as error:  # its forward is worth having
            modes = ("forward",)
            yield {"reason": f"forward only: {first_line(error)}"}
        job = metrics.Job(
            workload,
            ("latency",),
            names,
            threads=torch.get_num_threads(),
            rounds=rounds,
            modes=modes,
            device=device,
            checked={(each, workload) for each in names},
        )
        yield from metrics.measure(job)
    except Exception as error:
        yield {"reason": first_line(error)}
