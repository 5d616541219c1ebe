"""The ways to install, and what must hold after each of them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.installs import pip, run, unpack

WAYS = ["sdist", "isolated", "no-build-isolation", "editable", "wheel"]
REQUIREMENTS = ("setuptools", "pybind11", "ninja")

# Prints the OpenMP runtimes that are in the process after a call with gradients.
RUNTIMES = r"""
import re, torch, stdeform
value = torch.rand(2, 1000, 4, 32, requires_grad=True)
locations, weights = torch.rand(2, 1000, 4, 1, 4, 3), torch.rand(2, 1000, 4, 1, 4)
stdeform.st_deform_attn(value, [(10, 10, 10)], locations, weights).sum().backward()
with open("/proc/self/maps") as maps:
    print(*sorted(set(re.findall(r"\S*/lib(?:g|i|)omp\S*", maps.read()))), sep="\n", end="")
"""


def install(way: str, sdist: Path, python: Path, folder: Path, **settings: str) -> Path:
    """Installs stdeform from its sdist in one of the ways.

    Args:
        way: One of `WAYS`.
        sdist: The archive.
        python: That of the environment to install into.
        folder: Where sources and wheels are put, each in a new folder.
        **settings: Environment variables.

    Returns:
        The folder below which the package must be now.
    """
    command: tuple[str | Path, ...] = ("install", "--no-deps")
    if way == "sdist":
        pip(python, *command, sdist, cwd=folder, **settings)
        return python.parents[1]
    tree = unpack(sdist, folder / "sources")
    if way == "wheel":
        wheels = folder / "wheels"
        pip(python, "wheel", "--no-deps", "--wheel-dir", wheels, ".", cwd=tree, **settings)
        command += ("--no-index", *wheels.iterdir())
    if way == "no-build-isolation":
        pip(python, "install", *REQUIREMENTS, cwd=folder)
        command += ("--no-build-isolation", ".")
    if way == "isolated":
        command += (".",)
    if way == "editable":
        command += ("--editable", ".")
    pip(python, *command, cwd=tree, **settings)
    return tree if way == "editable" else python.parents[1]


def report_of(python: Path, *prefix: str | Path) -> str:
    """Runs the command `stdeform`, which must succeed without a warning; returns its output."""
    command = (*prefix, python.with_name("stdeform"))
    report = run(*command, cwd=python.parents[2], PYTHONWARNINGS="error")
    assert "self-check passed" in report
    return report


def folder_in(report: str) -> Path:
    """The folder of the package, as the report says it."""
    (folder,) = re.findall(r"^  folder +(.+)$", report, re.MULTILINE)
    return Path(folder)


def check_native(report: str, compiler: str = "") -> None:
    """Checks that a report is of a native core that this compiler has built."""
    assert "cpu tensor   native, ISA " in report
    assert f"compiler  {compiler}" in report
    assert re.search(r"ISAs +portable, avx2, avx512$|ISAs +portable \(", report, re.MULTILINE)


def check_threads(report: str, python: Path) -> None:
    """Checks that a process has one OpenMP runtime, whose threads are those of the report."""
    (runtime,) = run(python, "-c", RUNTIMES, cwd=python.parents[2]).splitlines()
    assert re.search(rf"threads \d+ of {re.escape(Path(runtime).name)}$", report, re.MULTILINE)
