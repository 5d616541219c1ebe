"""The stages `build` and `environment` of `gpu-check`: the module, and where it runs."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.gpu import prebuilt
from benchmarks.gpu.stage import Stage
from benchmarks.measure import environment
from benchmarks.measure.compiled import cuda_tool
from benchmarks.measure.processes import ROOT

# In a process of its own, which loads what was built just now.
_MISSING = "from stdeform import _native; print(_native.missing({!r}) or '')"


def build(stage: Stage) -> bool:
    """Takes what was built elsewhere if it fits, or builds in place with what the machine has."""
    arch = architecture(stage.device)
    problem = "there is no prebuilt module"
    if stage.prebuilt:
        problem = prebuilt.install(stage.prebuilt, arch) or missing(stage.device)
        what = f"{problem}; building" if problem else f"taken from {stage.prebuilt.name}/"
        stage.record.note(what)
    problem = problem and _build_here(stage, arch)
    if problem:
        stage.record.note(problem)
        return False
    # It computes a little and compares: the first sign of life.
    is_right = stage.call([sys.executable, "-m", "stdeform"]) == 0
    if not is_right:
        stage.record.note("the self-check of python -m stdeform failed, see gpu-check.log")
    return is_right


def _build_here(stage: Stage, arch: str) -> str:
    """Why it has not worked; "" if it has."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    switches = {"STDEFORM_NATIVE": "1", "STDEFORM_CUDA_ARCHS": arch}
    if stage.device == "cuda" or cuda_tool("nvcc"):
        switches["STDEFORM_CUDA"] = "1"
    status = stage.call(command, **switches)
    if status is None:
        return "the build was stopped"
    return "the build failed, see gpu-check.log" if status else missing(stage.device)


def architecture(device: str) -> str:
    """The GPU's compute capability without its dot; without a GPU that of Hopper, "90"."""
    if device != "cuda":
        return "90"
    return "".join(map(str, torch.cuda.get_device_capability(0)))


def missing(device: str) -> str:
    """Why a fresh process has no kernels for a device; "" if it has."""
    command = [sys.executable, "-c", _MISSING.format(device)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else ""


def describe(stage: Stage) -> bool:
    """Records where everything else runs: machine, versions, commit."""
    stage.record.write(row=environment.describe(list(stage.argv), stage.device))
    return True
