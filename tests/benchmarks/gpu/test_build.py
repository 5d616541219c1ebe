"""The build of `gpu-check` yields kernels for the device or has failed; a packed one must fit."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import build
from benchmarks.gpu.stage import Stage
from tests.benchmarks.gpu.test_stage import stage


def _calls(monkeypatch: pytest.MonkeyPatch, *endings: bool) -> list[dict[str, str]]:
    """Lets programs end well or not, and notes the variables they were given."""
    given: list[dict[str, str]] = []
    left = iter(endings)

    def call(_: Stage, command: list[str], **environment: str) -> bool:
        given.append(environment)
        return next(left)

    monkeypatch.setattr(Stage, "call", call)
    return given


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that kernels are there")
def test_a_build_without_kernels_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every program it runs says that all is well; a fresh process is asked."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    given = _calls(monkeypatch, True, True)
    this = stage(tmp_path, "build", device="cuda")
    assert not build.build(this)
    assert build._missing("cuda")
    assert this.read()["notes"][1:] == [build._missing("cuda")]
    assert given == [{"STDEFORM_NATIVE": "1", "STDEFORM_CUDA": "1", "STDEFORM_CUDA_ARCHS": "90"}]


@pytest.mark.parametrize("endings", [(True, True), (True, False), (False,)])
def test_what_does_not_build_or_answers_wrongly_has_failed(
    endings: tuple[bool, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _calls(monkeypatch, *endings)
    monkeypatch.setattr(build, "_missing", lambda _: "")
    assert build.build(stage(tmp_path, "build")) == all(endings)
    assert len(given) == len(endings)


def test_a_told_commit_counts_where_there_is_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDEFORM_COMMIT", "0123456789ab")
    this = stage(tmp_path, "environment")
    assert build.describe(this)
    (facts,) = this.read()["rows"]
    assert facts["commit"] == "0123456789ab"
    assert facts["command"] == "python -m benchmarks gpu-check environment"


# -- what was built elsewhere --------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a module that was built just now, with CUDA for sm_90."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / build._MODULE).write_text("a module")
    cuda = {"version": "13.0", "architectures": ["90"], "ptx": "90"}
    record = {"native": None, "no_native": "", "cuda": cuda, "no_cuda": ""}
    (folder / "_build.json").write_text(json.dumps(record))
    monkeypatch.setattr(build, "_PACKAGE", folder)
    monkeypatch.setattr(build._build, "_RECORD", folder / "_build.json")
    return folder


@pytest.fixture
def packed(package: Path, tmp_path: Path) -> Path:
    assert main(["prebuilt", str(tmp_path / "packed")]) == 0
    for path in package.iterdir():
        path.unlink()
    return tmp_path / "packed"


def test_a_packed_module_is_put_back_and_one_that_is_loaded_stays(
    packed: Path, package: Path
) -> None:
    """What is written into a file that a process has loaded crashes it."""
    module = package / build._MODULE
    module.write_text("a loaded module")
    with module.open() as loaded:
        assert build._install(packed, "90") == ""
        assert loaded.read() == "a loaded module"
    assert module.read_text() == "a module"
    assert json.loads((package / "_build.json").read_text())["cuda"]["architectures"] == ["90"]
    assert len(list(package.iterdir())) == 2


@pytest.mark.parametrize("spoil", ["another Python", "other sources", "built for 90"])
def test_a_module_that_does_not_fit_is_refused(
    spoil: str, packed: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil == "another Python":
        (packed / build._MODULE).rename(packed / "_C.cpython-39-x86_64-linux-gnu.so")
    if spoil == "other sources":
        monkeypatch.setattr(build, "_digest", lambda: "another")
    assert build._install(packed, "80").endswith(spoil)
    assert not list(package.iterdir())


def test_sources_have_another_name_when_one_of_them_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "csrc" / "cuda" / "a.cu"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    names = set()
    for text in ("one", "two"):
        source.write_text(text)
        names.add(build._digest())
    source.rename(source.with_name("b.cu"))
    names.add(build._digest())
    assert len(names) == 3


def test_a_module_older_than_its_sources_is_not_packed(package: Path, tmp_path: Path) -> None:
    os.utime(package / build._MODULE, (0, 0))
    with pytest.raises(SystemExit, match="is newer than the module"):
        main(["prebuilt", str(tmp_path / "packed")])
    (package / build._MODULE).unlink()
    with pytest.raises(SystemExit, match="nothing is built in place with CUDA"):
        main(["prebuilt", str(tmp_path / "packed")])


@pytest.mark.parametrize("fits", [True, False])
def test_nothing_is_built_where_what_was_brought_along_fits(
    fits: bool, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _calls(monkeypatch, *([True] if fits else [True, True]))
    monkeypatch.setattr(build, "_missing", lambda _: "")
    if not fits:
        monkeypatch.setattr(build, "_digest", lambda: "another")
    this = stage(tmp_path, "build")
    this = dataclasses.replace(this, prebuilt=str(packed))
    assert build.build(this)
    assert len(given) == (1 if fits else 2)  # python -m stdeform, and a build before
    note = "taken from --prebuilt" if fits else "packed/ was built from other sources: building"
    assert this.read()["notes"] == [note]
