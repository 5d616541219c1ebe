"""Times of the single kernels that a call launches, as PyTorch's profiler sees them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure.rows import Row

_OURS = r"stdeform::cuda::(?:\(anonymous namespace\)::)?(\w+)"
_WARM_UP = 3
_CALLS = 20
_MOST = 12  # kernels of a call that are reported


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
            "kernel_seconds": _micro(event, device) / 1e6 / _CALLS,
        }
        for event in seen.key_averages()
    ]
    launched = [row for row in rows if row["kernel_seconds"]]
    return sorted(launched, key=lambda row: -row["kernel_seconds"])[:_MOST]


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
