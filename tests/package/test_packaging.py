"""What users install: the sdist, builds with and without compilers, the wheel, the import.

The objects of this checkout are put into the unpacked sdist, so that its isolated install compiles
only what differs: ninja compares every source and header with them, and misses any that is not
there. The other builds work on copies of that tree, as a developer's rebuild does.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import stdeform
from tests.cuda import machine_code
from tests.support.installs import (
    ARCHS,
    ROOT,
    lend_torch,
    make_environment,
    make_sdist,
    pip,
    run,
    unpack,
)

HAS_NVCC = bool(shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"))
ALLOWED_LIBRARIES = r"lib(stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so\.\d+|ld-linux.*"

NO_CORE = "=1, but there is no native core: no C++ compiler"
BUILD_WHEEL = ("wheel", "--no-deps", "--no-build-isolation", ".")

# Prints the warnings of two calls.
CALL = """
import warnings, torch, stdeform
value, locations = torch.rand(1, 24, 2, 8), torch.rand(1, 5, 2, 1, 4, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        stdeform.st_deform_attn(value, [(2, 3, 4)], locations, torch.ones(1, 5, 2, 1, 4))
print(*(warning.message for warning in caught), sep="\\n", end="")
"""


def copy(tree: Path, to: Path) -> Path:
    return Path(shutil.copytree(tree, to, symlinks=True))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, built in isolation from a copy of its sources."""
    return make_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Isolated `pip install .` in the unpacked sdist: the tree and the Python it went into."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_environment(folder / "environment")
    tree = unpack(sdist, folder / "tree")
    for objects in (ROOT / "build").glob("native-*"):
        shutil.copytree(objects, tree / "build" / objects.name)
    pip(python, "install", "--no-deps", ".", cwd=tree)
    lend_torch(python)
    return tree, python


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the build requirements, for builds without isolation."""
    folder = tmp_path_factory.mktemp("builder")
    python = make_environment(folder / "environment")
    pip(python, "install", "setuptools", "pybind11", "ninja", cwd=folder)
    lend_torch(python)
    return python


@pytest.fixture(scope="session")
def built(
    installed: tuple[Path, Path], builder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of that tree after `python -m build --wheel`, the wheel beside it."""
    tree = copy(installed[0], tmp_path_factory.mktemp("built") / "tree")
    run(builder, "-m", "build", "--wheel", "--no-isolation", "--outdir", "..", cwd=tree)
    return tree


@pytest.fixture
def tree(built: Path, tmp_path: Path) -> Path:
    """A tree in which everything is built, for one test alone."""
    return copy(built, tmp_path / "tree")


@pytest.fixture
def wheel(built: Path) -> Path:
    (archive,) = built.parent.glob("*.whl")
    return archive


@pytest.fixture
def sources(sdist: Path, tmp_path: Path) -> Path:
    """The unpacked sdist, in which nothing was built, for one test alone."""
    return unpack(sdist, tmp_path / "sources")


def record_of(tree: Path) -> dict[str, Any]:
    return json.loads((tree / "stdeform" / "_build.json").read_text())


def test_sdist_holds_every_file_of_the_project(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/bindings.cpp", "csrc/cuda/device.h", "docs/install.md"} <= packed
    assert not [name for name in packed if name.endswith((".so", "_build.json", ".pyc"))]
    if not ((ROOT / ".git").exists() and shutil.which("git")):
        pytest.skip("the rest needs git, to say what belongs to the project")
    assert set(run("git", "ls-files", cwd=ROOT).split()) - packed == {".gitignore"}


def test_wheel_holds_the_package_and_nothing_else(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"stdeform-{stdeform.__version__}-{tag}-{tag}-linux_")
    found = [path for kind in ("py", "pyi") for path in (ROOT / "stdeform").rglob(f"*.{kind}")]
    modules = {str(path.relative_to(ROOT)) for path in found}
    extension = f"stdeform/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        record = archive.read("stdeform/_build.json").decode()
        library = archive.read(extension)
    assert names == modules | {extension, "stdeform/py.typed", "stdeform/_build.json"}
    for place in (ROOT, tmp_path_factory.getbasetemp()):
        assert str(place) not in record
        assert str(place).encode() not in library


def test_native_module_needs_no_torch_and_no_cuda(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        library = archive.extract(name, tmp_path)
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library, cwd=tmp_path))
    assert needed
    assert [name for name in needed if not re.fullmatch(ALLOWED_LIBRARIES, name)] == []
    symbols = run("readelf", "--dyn-syms", "--wide", library, cwd=tmp_path)
    assert "PyInit__C" in symbols
    # Another copy of the CUDA runtime in the process must not find this one's.
    assert re.findall(r".*\bcu[a-z]+[A-Z]\w*", symbols) == []


def test_isolated_install_imports_and_computes(
    installed: tuple[Path, Path], tmp_path: Path
) -> None:
    _, python = installed
    report = run(python, "-W", "error", "-m", "stdeform", cwd=tmp_path)
    assert "cpu tensor   native" in report
    assert "self-check passed" in report
    assert run(python, "-c", CALL, cwd=tmp_path) == ""


def test_the_check_in_the_checkout_is_of_what_was_installed(installed: tuple[Path, Path]) -> None:
    """Right after `pip install .`, in the folder where it was typed."""
    tree, python = installed
    assert "cpu tensor   native" in run(python.with_name("stdeform"), cwd=tree)
    printed = run(python, "-m", "stdeform", cwd=tree, fails=True)
    assert (
        f"Not checked: this is the source tree {tree / 'stdeform'}, which was never built"
        in printed
    )
    assert "type: stdeform\n" in printed


def test_record_says_what_was_built(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        record = json.loads(archive.read("stdeform/_build.json"))
    assert record["native"]["isas"][0] == "portable"
    assert re.search(r"\d+\.\d+", record["native"]["compiler"])
    if not HAS_NVCC:
        pytest.skip("the CUDA part needs nvcc")
    assert record["cuda"]["architectures"] == ARCHS
    assert re.fullmatch(r"\d+\.\d+", record["cuda"]["version"])


def test_rebuild_compiles_only_what_changed(tree: Path, builder: Path) -> None:
    build = (builder, "setup.py", "build_ext", "--inplace")
    assert "no work to do" in run(*build, cwd=tree)
    (tree / "csrc" / "bindings.cpp").touch()
    assert re.findall(r"compile (\S+)", run(*build, cwd=tree)) == ["csrc/bindings.cpp"]


def test_editable_install_runs_the_checkout(tree: Path, builder: Path, tmp_path: Path) -> None:
    pip(builder, "install", "--no-deps", "--no-build-isolation", "--editable", ".", cwd=tree)
    code = "import stdeform, stdeform._C as core; print(stdeform.__file__, core.__file__)"
    for path in run(builder, "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(tree)
    assert record_of(tree)["native"]


def test_without_a_compiler_the_install_succeeds_and_says_so(sources: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    python = make_environment(tmp_path / "environment")
    pip(python, "install", "--no-deps", ".", cwd=sources, PATH=nowhere)
    lend_torch(python)
    warnings = run(python, "-c", CALL, cwd=tmp_path).splitlines()
    assert len(warnings) == 1
    assert "no C++ compiler (g++ or clang++) was found" in warnings[0]
    report = run(python, "-W", "error", "-m", "stdeform", cwd=tmp_path)
    assert "native core  none: no C++ compiler (g++ or clang++) was found" in report
    assert "self-check passed" in report
    (tag,) = (tmp_path / "environment").glob("lib/python*/site-packages/stdeform-*/WHEEL")
    assert "Tag: py3-none-any" in tag.read_text()


def test_a_compiler_that_fails_stops_the_install(tree: Path, builder: Path) -> None:
    with (tree / "csrc" / "bindings.cpp").open("a") as source:
        source.write("#error planted by the test\n")
    printed = pip(builder, *BUILD_WHEEL, cwd=tree, fails=True)
    assert "planted by the test" in printed
    assert "STDEFORM_NATIVE=0 installs without it" in printed
    assert not list(tree.glob("*.whl"))


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("build", "CXX=no-such-c++", "CXX is 'no-such-c++', which was not found"),
        ("build", "STDEFORM_NATIVE=yes", "STDEFORM_NATIVE must be 0, 1 or unset, got 'yes'"),
        ("build", "STDEFORM_NATIVE=1 PATH=nowhere", NO_CORE),
        # Without a compiler these have nothing to do.
        ("build_ext", "STDEFORM_CUDA=1 PATH=nowhere", NO_CORE),
        ("egg_info", "STDEFORM_NATIVE=1 PATH=nowhere", NO_CORE),
        ("build", "STDEFORM_CUDA=1 CUDA_HOME=nowhere", "STDEFORM_CUDA=1, but no CUDA compiler"),
        # Both compile C++; the first does not link its library, which only an import would tell.
        ("build", "CXX=gcc", "cannot build a C++17 program: undefined reference to"),
        ("build", "CXXFLAGS=-std=c++11", "cannot build a C++17 program: "),
        ("build", "LDFLAGS=-lno-such", "with LDFLAGS=-lno-such"),
        pytest.param(
            "build",
            "STDEFORM_CUDA_ARCHS=75;12",
            "STDEFORM_CUDA_ARCHS names 12, but nvcc knows",
            marks=pytest.mark.skipif(not HAS_NVCC, reason="asks nvcc"),
        ),
    ],
)
def test_what_cannot_be_had_is_refused(
    command: str, settings: str, message: str, sources: Path, builder: Path
) -> None:
    environment = dict(setting.split("=", 1) for setting in settings.split())
    printed = run(builder, "setup.py", "-q", command, cwd=sources, fails=True, **environment)
    assert message in printed


@pytest.mark.skipif(not HAS_NVCC, reason="needs nvcc")
def test_the_cuda_sources_compile_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-Werror all-warnings")
    source = tmp_path / "unused.cu"
    source.write_text("__global__ void kernel() { int unused; }\n")
    with pytest.raises(RuntimeError, match="never referenced"):
        machine_code.compile_source(source, tmp_path)
    machine_code.compile_source(ROOT / "csrc" / "cuda" / "inst_f64.cu", tmp_path)


def test_without_nvcc_the_rest_is_built(tree: Path, builder: Path) -> None:
    build = (builder, "setup.py", "build_ext", "--inplace")
    run(*build, cwd=tree, CUDA_HOME=str(tree / "nowhere"))
    assert record_of(tree)["native"]
    assert record_of(tree)["cuda"] is None
    assert record_of(tree)["no_cuda"] == "no CUDA compiler (nvcc) was found in CUDA_HOME"
    run(*build, cwd=tree, STDEFORM_CUDA="0")
    assert record_of(tree)["no_cuda"] == "CUDA was left out by STDEFORM_CUDA=0"


@pytest.mark.skipif(not HAS_NVCC, reason="needs nvcc")
def test_cuda_part_imports_without_a_driver(installed: tuple[Path, Path], tmp_path: Path) -> None:
    code = "import torch, stdeform._C as core; print(*core.cuda_devices())"
    count, _, reason = run(installed[1], "-c", code, cwd=tmp_path).strip().partition(" ")
    assert (int(count) > 0) == (reason == "")
    if not Path("/proc/driver/nvidia").exists():
        assert (count, reason) == ("0", "no usable CUDA driver was found")


def test_a_label_becomes_a_part_of_the_version(
    sources: Path, builder: Path, tmp_path: Path
) -> None:
    settings = {"STDEFORM_NATIVE": "0", "DIST_EXTRA_CONFIG": ".ci/cu13.cfg"}
    run(builder, "setup.py", "egg_info", "--egg-base", tmp_path, cwd=sources, **settings)
    metadata = (tmp_path / "stdeform.egg-info" / "PKG-INFO").read_text()
    assert f"\nVersion: {stdeform.__version__}+cu13\n" in metadata
    for field in ("Author-email", "Project-URL: Homepage", "Project-URL: Changelog"):
        assert f"\n{field}" in metadata
