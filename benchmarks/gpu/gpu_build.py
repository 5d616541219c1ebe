"""The stages `build` and `environment` of `gpu-check`: the module, and where it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import torch

from benchmarks.gpu import prebuilt
from benchmarks.gpu.gpu_job import Job, architecture
from benchmarks.measure import environment
from benchmarks.measure.processes import ROOT

# In a process of its own, which loads what was built just now.
_MISSING = "from stdeform import _native; print(_native.missing({!r}) or '')"


def build(job: Job) -> bool:
    """Takes what was built elsewhere if it fits, or builds in place with what the machine has."""
    arch = architecture(job.device)
    problem = "nothing was brought along"
    if job.prebuilt:
        problem = prebuilt.install(job.prebuilt, arch) or missing(job.device)
        what = f"{problem}; building" if problem else f"taken from {job.prebuilt.name}/"
        job.record.note(what)
    problem = problem and _build_here(job, arch)
    if problem:
        job.record.note(problem)
        return False
    # It computes a little and compares: the first sign of life.
    checked = job.call([sys.executable, "-m", "stdeform"]) == 0
    if not checked:
        job.record.note(f"the self-check of python -m stdeform failed, see {job.log.name}")
    return checked


def _build_here(job: Job, arch: str) -> str:
    """Why it has not worked; "" if it has."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    nvcc = find("nvcc")
    switches = {"STDEFORM_NATIVE": "1", "STDEFORM_CUDA_ARCHS": arch}
    if job.device == "cuda" or nvcc:
        switches["STDEFORM_CUDA"] = "1"
    status = job.call(command, **switches)
    if status is None:
        return "the build was stopped"
    return f"the build failed, see {job.log.name}" if status else missing(job.device)


def missing(device: str) -> str:
    """Why a fresh process has no kernels for a device; "" if it has."""
    command = [sys.executable, "-c", _MISSING.format(device)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else ""


def describe(job: Job) -> bool:
    """Notes where everything else runs: machine, versions, commit."""
    facts = environment.describe(list(job.words))
    # Where only the files travel to the GPU, the commit is told.
    facts["commit"] = os.environ.get("STDEFORM_COMMIT") or facts["commit"]
    facts["nvcc"] = _first_match(r"release [\d.]+, V[\d.]+", "nvcc", "--version")
    facts["torch_cuda"] = torch.version.cuda
    if job.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver, clock, power": _first_match(
                r".+", "nvidia-smi", query, "--format=csv,noheader"
            ),
        }
    job.record.row(facts)
    return True


def find(tool: str) -> str | None:
    """Where a program of the CUDA toolkit is; None if it is nowhere."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")


def _first_match(pattern: str, tool: str, *options: str) -> str | None:
    command = find(tool)
    if command is None:
        return None
    told = subprocess.run([command, *options], text=True, capture_output=True, check=False).stdout
    match = re.search(pattern, told)
    return match[0] if match else None
