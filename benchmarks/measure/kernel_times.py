"""Times of the single kernels that a call launches, as PyTorch's profiler sees them.

`python -m benchmarks.measure.kernel_times DEVICE WORKLOAD DTYPE CALLS` runs forward and backward
CALLS times: a program for `ncu` to look at.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report.bars import Row
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS

_OURS = r"stdeform::cuda::(?:\(anonymous namespace\)::)?(\w+)"
_WARM_UP = 3
_CALLS = 20
_MOST = 12  # kernels of a call that are told


def measure(run: Callable[[], object], device: str) -> list[Row]:
    """Kernels of a call, those that take longest first; on the CPU the operators.

    Args:
        run: The call.
        device: "cuda" or "cpu".

    Returns:
        Each with its name, how often a call launches it, and seconds of a call.
    """
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    for _ in range(_WARM_UP):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    with profile(activities=[activity], acc_events=True) as seen:
        for _ in range(_CALLS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
    rows = [
        {
            "kernel": event.key,
            "launches": event.count / _CALLS,
            "seconds": _micro(event, device) / 1e6 / _CALLS,
        }
        for event in seen.key_averages()
    ]
    return sorted((row for row in rows if row["seconds"]), key=lambda row: -row["seconds"])[:_MOST]


def _micro(event: object, device: str) -> float:
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return float(getattr(event, name))


def short(kernel: str) -> str:
    """The name of a kernel of ours with the dtype and the number of axes."""
    match = re.search(_OURS + r"(?:<([^,>]+, \d+))?", kernel)
    if not match:
        return kernel[:60]
    return f"{match[1]}<{match[2]}>" if match[2] else match[1]


def function(kernel: str) -> str | None:
    """The name of the function of a kernel of ours; None if it is not ours."""
    match = re.search(_OURS, kernel)
    return match[1] if match else None


def _main() -> None:
    device, name, dtype, calls = sys.argv[1:]
    workload = dataclasses.replace(WORKLOADS[name], dtype=dtype)
    run = IMPLEMENTATIONS["native"].prepare(workload, 0).to(device).call("forward+backward")
    for _ in range(int(calls)):
        run()


if __name__ == "__main__":
    _main()
