"""What the build asks of a compiler, of Python and of the build requirements, before it starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pytest

from tests.support import build_script
from tests.support.build_script import ROOT

# Those of docs/install.md.
COMPILERS = ["g++-11", "g++-12", "g++-13", "clang++-14", "clang++-16", "clang++-19"]
# Each ISA, the bytes of its vectors, and how many intrinsics are used for it.
USED = [("avx2", 32, 4), ("avx512", 64, 10)]


@pytest.fixture
def setup_py() -> dict[str, Any]:
    """The names of setup.py."""
    return build_script.load()


def probe(name: str, setup_py: dict[str, Any], folder: Path, compiler: str) -> str:
    """What a probe says of a compiler: "" or a reason."""
    builder = object.__new__(setup_py["BuildNative"])
    builder.cxx, builder.cxx_flags, builder.link_flags = [compiler], setup_py["CXX_FLAGS"], []
    builder.steps = types.SimpleNamespace(folder=str(folder))
    flags = {"cxx17": [], **setup_py["ISA_FLAGS"]}
    said = builder.try_probe(name, flags[name])
    assert isinstance(said, str)
    return said


def wrapper(folder: Path, script: str) -> str:
    """A compiler that is c++, after a line of shell."""
    path = folder / "wrapped-c++"
    path.write_text(f'#!/bin/sh\n{script}\nexec c++ "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(not shutil.which("c++"), reason="needs c++")
@pytest.mark.parametrize(
    ("lacks", "script", "reason"),
    [
        ("avx512", 'case "$*" in *avx512f*) set -- "$@" -mno-avx512f;; esac', "target"),
        ("avx512", 'case "$*" in *avx512f*) set -- "$@" -mno-such;; esac', "-mno-such"),
        ("avx2", 'case "$*" in *avx2.cpp*) set -- "$@" -mno-f16c;; esac', "target"),
    ],
)
def test_a_probe_uses_what_it_probes(
    lacks: str, script: str, reason: str, setup_py: dict[str, Any], tmp_path: Path
) -> None:
    """The flag alone says nothing of intrinsics that may be missing."""
    said = probe(lacks, setup_py, tmp_path, wrapper(tmp_path, script))
    assert reason in said
    assert "/" not in said  # no path of this machine


@pytest.mark.parametrize(("isa", "size", "count"), USED)
def test_the_probe_of_an_isa_has_every_intrinsic_that_is_used(
    isa: str, size: int, count: int
) -> None:
    text = (ROOT / "csrc" / "cpu" / "simd.h").read_text()
    branches = re.findall(rf"STDEFORM_VECTOR_BYTES == {size}\n(.*?)#el", text, re.DOTALL)
    intrinsic = r"\b_(?:mm|cvt)\w*"
    used = {name for branch in branches for name in re.findall(intrinsic, branch)}
    assert len(used) == count
    assert used <= set(re.findall(intrinsic, (ROOT / f"csrc/probes/{isa}.cpp").read_text()))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_compilers_of_the_docs_build_it(
    compiler: str, setup_py: dict[str, Any], tmp_path: Path
) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    assert [probe(name, setup_py, tmp_path, compiler) for name in ("cxx17", "avx512")] == ["", ""]
    flags = setup_py["CXX_FLAGS"]
    for source, isa in (("isa", "portable"), ("isa_portable", "portable"), ("isa_avx2", "avx2")):
        command = [compiler, *flags, *setup_py["ISA_FLAGS"][isa], "-Werror", "-fsyntax-only"]
        command.append(f"csrc/cpu/{source}.cpp")
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"setuptools": "76.1.0"}, "setuptools>=77, and 76.1.0 is installed"),
        ({"pybind11": "2.9.2"}, "pybind11>=2.13, and 2.9.2 is installed"),
        ({"ninja": None}, "ninja, which is not installed"),
        ({"setuptools": "77", "pybind11": "2.13.0", "ninja": "1.11.1"}, ""),
        ({"setuptools": "100.0", "pybind11": "3.0", "ninja": "1"}, ""),
    ],
)
def test_build_requirements_are_named_with_what_is_installed(
    installed: dict[str, str | None],
    told: str,
    setup_py: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metadata = setup_py["metadata"]

    def version(name: str) -> str:
        text = installed.get(name, "1000")
        if text is None:
            raise metadata.PackageNotFoundError(name)
        return text

    monkeypatch.setattr(metadata, "version", version)
    check = setup_py["check_requirements"]
    if not told:
        check("setuptools", "pybind11", "ninja")
        return
    with pytest.raises(SystemExit) as stopped:
        check("setuptools", "pybind11", "ninja")
    assert f"error: the build of stdeform needs {told}." in str(stopped.value)
    assert "pip install 'setuptools>=77' 'pybind11>=2.13' ninja" in str(stopped.value)


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 9, 1)])
def test_an_old_python_is_named(
    version: tuple[int, ...], setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(
        SystemExit, match=r"needs Python 3\.10 or newer, and this is Python 3\.[89]"
    ):
        setup_py["check_python"]()


def test_a_path_of_windows_keeps_its_backslashes(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [r"C:\Program Files\LLVM\bin\clang++.exe", "-m64"]
    monkeypatch.setattr(os, "name", "nt")
    assert setup_py["split_words"](r'"C:\Program Files\LLVM\bin\clang++.exe" -m64') == words
    assert setup_py["split_words"](setup_py["join_words"](words)) == words
    assert setup_py["split_words"](r'-I"C:\a b\inc"  -O2') == [r"-IC:\a b\inc", "-O2"]


def test_windows_without_llvm_says_what_is_missing(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python there names no compiler, and there may be one of Microsoft."""
    for name in ("CXX", "STDEFORM_NATIVE", "STDEFORM_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setitem(setup_py, "SYSTEM", "win")
    for name in ("cl", "g++", "nvcc"):
        (tmp_path / name).touch(mode=0o755)
    assert setup_py["find_compiler"]() == (
        [],
        "clang++ of LLVM was not found, and Microsoft's cl cannot compile the kernels",
    )
    assert setup_py["find_nvcc"]()[0] == ""


def test_the_compiler_that_macos_only_offers_is_none(
    setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """/usr/bin has its name on every Mac, also where nothing was installed."""
    for name in ("CXX", "STDEFORM_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(shutil, "which", "/usr/bin/{}".format)
    monkeypatch.setitem(setup_py, "SYSTEM", "macosx")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = tmp_path / "xcode-select"
    for status, found in ((2, False), (0, True)):
        command.write_text(f"#!/bin/sh\nexit {status}\n")
        command.chmod(0o755)
        compiler, reason = setup_py["find_compiler"]()
        assert bool(compiler) == found
        assert ("xcode-select --install" in reason) != found


@pytest.mark.parametrize(
    ("platform", "flags", "machine", "is_x86"),
    [
        ("linux-x86_64", "", "", True),
        ("win-amd64", "", "", True),
        ("linux-aarch64", "", "", False),
        ("macosx-11.0-arm64", "", "", False),
        ("macosx-10.13-universal2", "", "x86_64", True),
        ("macosx-10.13-universal2", "", "arm64", False),
        ("macosx-10.13-universal2", "-arch x86_64", "arm64", True),
        ("macosx-10.13-universal2", "-arch arm64 -arch x86_64", "x86_64", False),
    ],
)
def test_intrinsics_of_x86_are_for_x86(
    platform: str, flags: str, machine: str, is_x86: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_platform", lambda: platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setenv("ARCHFLAGS", flags)
    assert build_script.load()["IS_X86"] == is_x86
