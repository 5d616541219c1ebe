"""`python -m benchmarks prebuilt`: packs the module that is built in place, for a machine without.

The stage `build` of `gpu-check` takes it if it is for that Python, that GPU and these very sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.measure import environment
from benchmarks.measure.compiled import cuda_tool
from benchmarks.measure.processes import ROOT
from stdeform import _build

_PACKAGE = ROOT / "stdeform"
_MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
_RECORD = "_build.json"
_SOURCES = "sources.txt"
# In a process of its own, which loads what was built just now.
_MISSING = "from stdeform import _native; print(_native.missing({!r}) or '')"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `prebuilt`."""
    parser.add_argument("folder", type=Path, help="made if it is not there")


def run(options: argparse.Namespace) -> int:
    """Copies the module with its record, and writes what it was built from.

    Raises:
        SystemExit: There is none, it has no CUDA part, or it is older than a source.
    """
    module = _PACKAGE / _MODULE
    if not module.is_file() or _build.read_record().cuda is None:
        raise SystemExit("nothing is built in place with CUDA; run setup.py build_ext --inplace")
    newest = max(_sources(), key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > module.stat().st_mtime:
        raise SystemExit(f"{newest.relative_to(ROOT)} is newer than the module; build it again")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in (_MODULE, _RECORD):
        shutil.copy(_PACKAGE / name, options.folder)
    (options.folder / _SOURCES).write_text(_digest())
    print(f"{_MODULE} and {_RECORD} are in {options.folder}")
    return 0


def build(stage: Stage) -> bool:
    """Takes what was built elsewhere if it fits, or builds in place with what the machine has."""
    major, minor = torch.cuda.get_device_capability() if stage.device == "cuda" else (9, 0)
    architecture = f"{major}{minor}"
    problem = "nothing was built elsewhere"
    if stage.prebuilt:
        problem = _install(Path(stage.prebuilt), architecture) or _missing(stage.device)
    stage.note(f"{problem}: building" if problem else "taken from --prebuilt")
    if problem:
        switches = {"STDEFORM_NATIVE": "1", "STDEFORM_CUDA_ARCHS": architecture}
        if stage.device == "cuda" or cuda_tool("nvcc"):
            switches["STDEFORM_CUDA"] = "1"
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        if not stage.call(command, **switches):
            return False
        if problem := _missing(stage.device):
            stage.note(problem)
            return False
    # It computes a little and compares: the first sign of life.
    return stage.call([sys.executable, "-m", "stdeform"])


def _install(folder: Path, architecture: str) -> str:
    """Copies a packed module into the package; why it was not done, "" if it was."""
    if not (folder / _MODULE).is_file():
        return f"{folder.name}/ has no {_MODULE}, it is for another Python"
    if (folder / _SOURCES).read_text() != _digest():
        return f"{folder.name}/ was built from other sources"
    built = json.loads((folder / _RECORD).read_text())["cuda"]["architectures"]
    if architecture not in built:
        return f"{folder.name}/ was built for {', '.join(built)}"
    for name in (_MODULE, _RECORD):
        # A new file under the old name: this process may have the old one loaded.
        fresh = _PACKAGE / f"{name}.new"
        shutil.copy(folder / name, fresh)
        fresh.replace(_PACKAGE / name)
    return ""


def _missing(device: str) -> str:
    """Why a fresh process has no kernels for a device; "" if it has."""
    command = [sys.executable, "-c", _MISSING.format(device)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else ""


def _sources() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())


def _digest() -> str:
    """Names the contents of csrc/."""
    named = [f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() for path in _sources()]
    return hashlib.sha256(b"".join(named)).hexdigest()


def describe(stage: Stage) -> bool:
    """The stage `environment`: where everything else runs, on which machine, versions, commit."""
    stage.write(row=environment.describe(["gpu-check", *stage.words], stage.device))
    return True
