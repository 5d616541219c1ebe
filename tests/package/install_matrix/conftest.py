"""The install matrix: its Pythons, PyTorch versions and compilers, and what they install."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.package.install_matrix.parts import (
    COMPILERS,
    KEPT,
    MINORS,
    OLDEST_TORCH,
    PYTHONS,
    Compiler,
    Pair,
    make_once,
)
from tests.support.installs import make_sdist, pip, site_packages


def pytest_report_header() -> list[str]:
    minors = ", ".join(f"3.{minor}" for minor in PYTHONS)
    found = [f"install matrix, kept in {KEPT}; Python {minors}"]
    return found + [Compiler(name).description for name in COMPILERS if shutil.which(name)]


@pytest.fixture(scope="session", params=["oldest", "newest"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """The oldest Python here with the oldest PyTorch, or the newest with the newest."""
    oldest = request.param == "oldest"
    if not PYTHONS:
        pytest.skip(f"no Python of 3.{MINORS[0]} to 3.{MINORS[-1]} with its headers was found")
    minor = min(PYTHONS) if oldest else max(PYTHONS)
    torch = f"torch=={OLDEST_TORCH}" if oldest else "torch"
    folder = KEPT / f"python3.{minor}-{request.param}"
    # Our versions are not for this pair. NumPy: without it some PyTorch versions warn at import.
    made = make_once(folder, PYTHONS[minor], torch, "numpy", PIP_CONSTRAINT=os.devnull)
    return Pair(PYTHONS[minor], site_packages(made))


@pytest.fixture(params=["", *COMPILERS], ids=lambda name: name or "no compiler")
def compiler(request: pytest.FixtureRequest) -> Compiler:
    """No compiler, or one of them."""
    if request.param and not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return Compiler(request.param)


@pytest.fixture(scope="session")
def some_compiler() -> Compiler:
    """Any of the compilers."""
    for name in COMPILERS:
        if shutil.which(name):
            return Compiler(name)
    pytest.skip(f"none of {', '.join(COMPILERS)} is installed")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout."""
    return make_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(
    sdist: Path, pair: Pair, some_compiler: Compiler, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A wheel with the native core, alone in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    python = pair.environment(folder / "environment")
    command = ("wheel", "--no-deps", "--wheel-dir", folder / "wheels", sdist)
    with some_compiler.turn():
        pip(python, *command, cwd=folder, **some_compiler.settings)
    (archive,) = (folder / "wheels").iterdir()
    return archive
