"""Installs for tests: environments, pip, and the source distribution of this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from stdeform._build import read_record

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (
    *(".git", ".venv", "*_cache", "__pycache__", "*.so", "_build.json", "*.egg-info"),
    *("build", "dist"),
)
STEERING = ("STDEFORM_", "CUDA_", "CXX", "LDFLAGS", "MAX_JOBS", "PYTHON")
INSTALLED_HERE = sysconfig.get_path("platlib")
RECORD = read_record()
ARCHS = list(RECORD.cuda.architectures) if RECORD.cuda else ["90"]


def run(*command: str | Path, cwd: Path, fails: bool = False, **settings: str) -> str:
    """Runs a command free of everything that steers a build but `settings`; returns its output."""
    constraints = str(ROOT / ".ci" / "constraints.txt")
    env = {key: text for key, text in os.environ.items() if not key.startswith(STEERING)}
    env |= {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    env |= {"STDEFORM_CUDA_ARCHS": ";".join(ARCHS)} | settings
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def make_environment(folder: Path, base: str | Path = sys.executable) -> Path:
    """Makes an empty virtual environment of a Python, by default this one; returns its Python."""
    run(base, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / "bin" / "python"


def site_packages(python: Path) -> Path:
    """The folder into which pip installs in a virtual environment."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    return packages


def lend_torch(python: Path, lent: str | Path = INSTALLED_HERE) -> None:
    """Makes an environment find what is in `lent`, by default what is installed here.

    What is installed in the environment itself comes first.
    """
    path = site_packages(python) / "lent_by_the_tests.pth"
    path.write_text(str(lent), encoding="utf-8")


def pip(
    python: Path, *arguments: str | Path, cwd: Path, fails: bool = False, **settings: str
) -> str:
    """Runs pip on an environment, which itself has none."""
    command = (sys.executable, "-m", "pip", "--python", python, *arguments)
    return run(*command, cwd=cwd, fails=fails, **settings)


def make_sdist(folder: Path) -> Path:
    """Builds the sdist of this checkout, in isolation and from a copy of its sources."""
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    command = (sys.executable, "-m", "build", "--sdist", "--outdir", folder, folder / "checkout")
    run(*command, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(sdist: Path, to: Path) -> Path:
    """Unpacks an sdist into a new folder and returns the tree in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(to, filter="data")
    (tree,) = to.iterdir()
    return tree
