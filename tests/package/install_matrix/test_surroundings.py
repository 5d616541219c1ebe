"""Installs offline, read-only, in a folder with an odd name, by uv, and with conda's compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.package.install_matrix import ways
from tests.package.install_matrix.parts import KEPT, Compiler, Pair, tool
from tests.support.installs import pip, run, site_packages, unpack

# Of pip: nothing but what the command names, and not our versions, which are not for each PyTorch.
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": os.devnull}
# Makes a folder read-only, for root as well, and runs a command; in a namespace of its own.
READ_ONLY = 'mount --bind -o ro "$1" "$1" && shift && exec "$@"'


def test_offline_from_a_wheel(wheel: Path, pair: Pair, tmp_path: Path) -> None:
    """With its dependency, PyTorch, which is installed."""
    python = pair.environment(tmp_path / "environment")
    offline = ("--no-index", "--find-links", wheel.parent)
    pip(python, "install", *offline, "stdeform", cwd=tmp_path, **OFFLINE)
    ways.check_native(ways.report_of(python))


def test_offline_from_the_sdist(
    sdist: Path, pair: Pair, some_compiler: Compiler, tmp_path: Path
) -> None:
    """With wheels of the build requirements, which pip builds with in isolation."""
    python = pair.environment(tmp_path / "environment")
    wheels = tmp_path / "wheels"
    pip(python, "download", "--dest", wheels, *ways.REQUIREMENTS, cwd=tmp_path)
    offline = ("--no-index", "--find-links", wheels)
    settings = OFFLINE | some_compiler.settings
    pip(python, "install", *offline, sdist, cwd=tmp_path, **settings)
    ways.check_native(ways.report_of(python))


def test_read_only_site_packages(wheel: Path, pair: Pair, tmp_path: Path) -> None:
    """Nothing was compiled to bytecode yet, so that Python would like to write."""
    python = pair.environment(tmp_path / "environment")
    pip(python, "install", "--no-deps", "--no-compile", wheel, cwd=tmp_path)
    packages = site_packages(python)
    isolated = ("unshare", "--mount", "--map-root-user", "sh", "-c", READ_ONLY, "sh", packages)
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*isolated, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a folder cannot be made read-only here: {tried.stderr.strip()}")
    assert "Read-only" in run(*isolated, "touch", packages / "new", cwd=tmp_path, fails=True)
    ways.check_native(ways.report_of(python, *isolated))
    assert not list((packages / "stdeform").rglob("*.pyc"))


@pytest.mark.parametrize("way", ways.WAYS)
def test_a_folder_with_spaces_and_letters_that_are_not_ascii(
    way: str, sdist: Path, pair: Pair, some_compiler: Compiler, tmp_path: Path
) -> None:
    folder = tmp_path / "Ein schöner Ort, 很好"
    folder.mkdir()
    python = pair.environment(folder / "environment")
    settings = {"TMPDIR": str(folder), **some_compiler.settings}
    place = ways.install(way, sdist, python, folder, **settings)
    report = ways.report_of(python)
    ways.check_native(report)
    assert ways.folder_in(report).is_relative_to(place)


@pytest.mark.parametrize("options", [[], ["--no-build-isolation"], ["--editable"]], ids=" ".join)
def test_uv_installs(
    options: list[str], sdist: Path, pair: Pair, some_compiler: Compiler, tmp_path: Path
) -> None:
    python = pair.environment(tmp_path / "environment")
    tree = unpack(sdist, tmp_path / "sources")
    command = (tool("uv"), "pip", "install", "--python", python)
    settings = {"UV_CACHE_DIR": str(KEPT / "uv"), **some_compiler.settings}
    if "--no-build-isolation" in options:
        run(*command, *ways.REQUIREMENTS, cwd=tmp_path, **settings)
    run(*command, "--no-deps", *options, ".", cwd=tree, **settings)
    report = ways.report_of(python)
    ways.check_native(report)
    place = tree if "--editable" in options else python.parents[1]
    assert ways.folder_in(report).is_relative_to(place)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
def test_a_conda_environment_names_compiler_and_flags(
    sdist: Path, pair: Pair, some_compiler: Compiler, tmp_path: Path
) -> None:
    """They are those that conda's package of compilers sets when it is activated."""
    prefix = pair.environment(tmp_path / "conda").parents[1]
    cxx = prefix / "bin" / "x86_64-conda-linux-gnu-c++"
    cxx.symlink_to(tool("ccache"))  # which runs CCACHE_COMPILER if it is called by another name
    settings = {
        **some_compiler.settings,
        "CCACHE_COMPILER": str(shutil.which(some_compiler.name)),
        "CONDA_PREFIX": str(prefix),
        "CXX": str(cxx),
        "CXXFLAGS": "-fvisibility-inlines-hidden -fmessage-length=0 -march=nocona -mtune=haswell"
        " -ftree-vectorize -fPIC -fstack-protector-strong -fno-plt -O2 -ffunction-sections -pipe"
        f" -isystem {prefix}/include",
        "LDFLAGS": "-Wl,-O2 -Wl,--sort-common -Wl,--as-needed -Wl,-z,relro -Wl,-z,now"
        " -Wl,--disable-new-dtags -Wl,--gc-sections"
        f" -Wl,-rpath,{prefix}/lib -Wl,-rpath-link,{prefix}/lib -L{prefix}/lib",
    }
    python = prefix / "bin" / "python"
    ways.install("isolated", sdist, python, tmp_path, **settings)
    report = ways.report_of(python)
    ways.check_native(report)
    (ninja,) = tmp_path.glob("sources/*/build/native-*/*.ninja")
    *compiled, linked = ninja.read_text(encoding="utf-8").split("\nbuild ")[1:]
    assert len(compiled) >= 5
    assert all(f"  tool = {cxx}\n" in step for step in (*compiled, linked))
    assert all(settings["CXXFLAGS"] in step for step in compiled)
    assert settings["LDFLAGS"] in linked
    (module,) = ways.folder_in(report).glob("_C*.so")
    assert f"[{prefix}/lib]" in run("readelf", "-d", module, cwd=tmp_path)
