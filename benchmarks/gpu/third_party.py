"""One third-party baseline beside our operator, in a process of its own.

It may crash, hang or fill the GPU, which must not affect what is measured next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from benchmarks import metrics
from benchmarks.gpu.plan import SUBJECT
from benchmarks.gpu.stage import first_line
from benchmarks.measure import isolated
from benchmarks.measure.rows import ALL_MODES, Row
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY


def check_third_party(
    name: str, device: str, *, rounds: int, quick: bool, seconds: float
) -> tuple[list[Row], str]:
    """Checks and times one baseline beside our operator.

    Args:
        name: Of `THIRD_PARTY`.
        device: "cuda" or "cpu".
        rounds: Of timing.
        quick: On a handful of cells.
        seconds: After which it is stopped.

    Returns:
        Its rows and ours, and why there are none, or none of some mode; "" if nothing is missing.
    """
    if not THIRD_PARTY[name].is_installed:
        return [], "not installed"
    request = {"name": name, "device": device, "rounds": rounds, "quick": quick}
    answers, problem = isolated.call(f"{__name__}:time_here", request, seconds=seconds)
    reasons = [answer["reason"] for answer in answers if "reason" in answer]
    rows = [answer for answer in answers if "reason" not in answer]
    return rows, problem or "; ".join(reasons)


def time_here(name: str, device: str, rounds: int, quick: bool) -> Iterator[Row]:
    """The rows of `check_third_party`, and what is missing as "reason"."""
    workload = THIRD_PARTY[name].workload
    if quick:
        workload = dataclasses.replace(workload.shrunk(), name=f"{workload.name}-shrunk")
    both = (SUBJECT, name)
    try:
        ours, theirs = (
            {each: IMPLEMENTATIONS[each].prepare(workload, 0).to(device)} for each in both
        )
        check_correctness(workload, ours)
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
            both,
            threads=torch.get_num_threads(),
            rounds=rounds,
            modes=modes,
            device=device,
            checked={(each, workload) for each in both},
        )
        yield from metrics.measure(job)
    except Exception as error:
        yield {"reason": first_line(error)}
