"""The stages of `gpu-check` that test: pytest on the GPU, every kernel under a sanitizer.

It is also pytest's plugin there: the outcome of every test is a row as soon as it is known.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

from benchmarks.gpu import every_kernel
from benchmarks.gpu.stage import Stage
from benchmarks.measure.compiled import cuda_tool

if TYPE_CHECKING:
    import pytest  # which other commands do not need

_FILES = (
    "tests/operator/test_results.py",
    "tests/operator/test_points_per_level.py",
    "tests/operator/test_coordinates.py",
    "tests/operator/test_derivatives.py",
    "tests/operator/test_properties.py",
)
_HANGS = 60  # seconds of a test, after which the log says where it is
_MOST_WORKERS = 8
_LONGEST = 2000  # letters of an error: its end
# PyTorch's own calls may fail on purpose, to see what a driver has: those are no faults.
# A fault ends its kernel alone, so that the problems after it are looked at too.
_MEMCHECK = ("--report-api-errors", "no", "--padding", "256", "--destroy-on-device-error", "kernel")
# Kernels of PyTorch fill what ours add to. Only initcheck has to see them, and sees all.
_OURS = ("--kernel-name", "kns=stdeform")
_OPTIONS = {"memcheck": (*_MEMCHECK, *_OURS), "racecheck": _OURS, "initcheck": ()}
_FAULTS = 9  # exit status
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def every_kernel_once(stage: Stage) -> bool:
    """Every kernel on a small problem: which of them are right at all."""
    return every_kernel.run(stage, every_kernel.cases()[: 4 if stage.quick else None])


def on_gpu(stage: Stage) -> bool:
    """What only a GPU can show: streams, graphs, determinism, memory."""
    if stage.device == "cpu":
        stage.note("left out: it needs a GPU")
        return True
    return _pytest(stage, "tests/cuda/test_cuda.py")


def results(stage: Stage) -> bool:
    """The CUDA kernels against the oracles; without a GPU the same with the emulator."""
    backend = "cuda" if stage.device == "cuda" else "emulated"
    return _pytest(stage, *_FILES, "-k", f"{backend} and test_dtypes" if stage.quick else backend)


def _pytest(stage: Stage, *arguments: str) -> bool:
    """Runs pytest; a run in which nothing ran has failed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-ra", "-p", __name__]
    # With several processes pytest-benchmark warns, and warnings are errors.
    command += ["-o", f"faulthandler_timeout={_HANGS}", "-p", "no:benchmark"]
    workers = min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // 2)
    # Several processes, so that a kernel that takes the GPU away takes few tests along.
    if importlib.util.find_spec("xdist") and workers > 1:
        command += ["-n", str(workers)]
    # The suite has this test too, and may run in several processes itself.
    return stage.call([*command, *arguments], PYTEST_XDIST_WORKER="")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called by pytest after each part of a test; with several processes in each of them too."""
    if os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.passed):
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
    if report.failed:
        row["error"] = report.longreprtext[-_LONGEST:]
    Stage.of_environment().write(row=row)


def sanitize(stage: Stage) -> bool:
    """Every kernel once under the sanitizer that the stage is named after."""
    tool = cuda_tool("compute-sanitizer")
    if tool is None:
        stage.note("left out: there is no compute-sanitizer")
        return stage.device == "cpu"
    command = [tool, "--tool", stage.name, *_OPTIONS[stage.name], f"--error-exitcode={_FAULTS}"]
    command += [sys.executable, "-m", every_kernel.__name__]
    # Every allocation is one of CUDA's own, or an access beside it would be in PyTorch's memory.
    passed = stage.call(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    counts = [int(a or b) for a, b in _SUMMARY.findall(stage.log.read_text(errors="replace"))]
    stage.note(f"faults: {sum(counts)}" if counts else "it has counted no faults to the end")
    return passed and bool(counts)
