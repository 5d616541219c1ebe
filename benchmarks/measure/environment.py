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
from stdeform import _native

_ROOT = Path(__file__).parents[2]


def describe(arguments: list[str]) -> dict[str, Any]:
    """Machine, versions, commit, and the command that repeats the run.

    Args:
        arguments: What stood after `python -m benchmarks`.
    """
    isas = _native.usable_isas()
    return {
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
    """The commit of this checkout, marked where files differ from it; None outside git."""
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
