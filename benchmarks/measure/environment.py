"""Where and with what a figure was measured: every row of results carries it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch

import stdeform
from benchmarks.measure.compiled import cuda_tool
from stdeform import _native

_ROOT = Path(__file__).parents[2]


def describe(arguments: list[str], device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit, and the command that repeats the run.

    Args:
        arguments: After `python -m benchmarks`.
        device: "cpu" or "cuda": of the latter also the GPU, its driver and compiler.
    """
    isas = _native.usable_isas()
    facts = {
        "device": "cpu",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "simd": isas[0] if isas else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stdeform": stdeform.__version__,
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "load_average_at_start": load_average(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return facts | _gpu() if device == "cuda" else facts


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
    return {
        "device": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver, clock, power": _said(r".+", "nvidia-smi", query, "--format=csv,noheader"),
        "nvcc": _said(r"release [\d.]+, V[\d.]+", "nvcc", "--version"),
        "torch_cuda": torch.version.cuda,
    }


def _said(pattern: str, tool: str, *options: str) -> str | None:
    """What a program of the CUDA toolkit says of itself."""
    command = cuda_tool(tool)
    if command is None:
        return None
    said = subprocess.run([command, *options], text=True, capture_output=True, check=False).stdout
    match = re.search(pattern, said)
    return match[0] if match else None


def load_average() -> float:
    """Runnable processes over the last minute, our own threads included."""
    return round(os.getloadavg()[0], 2)


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def _commit() -> str | None:
    """The commit of this checkout, marked where files differ from it; None outside git.

    Where only the files travel to a machine, STDEFORM_COMMIT says what commit they are.
    """
    if commit := os.environ.get("STDEFORM_COMMIT"):
        return commit
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
