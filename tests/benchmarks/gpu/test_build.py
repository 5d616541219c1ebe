"""The build of `gpu-check` yields kernels for the device or has failed; a packed one must fit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import build, prebuilt
from benchmarks.gpu.stage import Stage
from tests.benchmarks.gpu.test_run_tests import stage

ROOT = Path(__file__).parents[3]


def _calls(monkeypatch: pytest.MonkeyPatch, *statuses: int | None) -> list[dict[str, str]]:
    """Lets programs end with these statuses, and notes the variables they were given."""
    given: list[dict[str, str]] = []
    left = iter(statuses)

    def call(_: Stage, command: list[str], **environment: str) -> int | None:
        given.append(environment)
        return next(left)

    monkeypatch.setattr(Stage, "call", call)
    return given


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that kernels are there")
def test_a_build_without_kernels_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every program it runs says that all is well."""
    monkeypatch.setattr(build, "architecture", lambda _: "90")
    given = _calls(monkeypatch, 0, 0)
    this = stage(tmp_path, "build", device="cuda")
    assert not build.build(this)
    assert this.record.read()["notes"] == [build.missing("cuda")]
    assert given[0] == {
        "STDEFORM_NATIVE": "1",
        "STDEFORM_CUDA": "1",
        "STDEFORM_CUDA_ARCHS": "90",
    }


@pytest.mark.parametrize(
    ("statuses", "missing", "passed", "notes"),
    [
        ((0, 0), "", True, []),
        ((0, 1), "", False, ["the self-check of python -m stdeform failed, see gpu-check.log"]),
        ((1,), "", False, ["the build failed, see gpu-check.log"]),
        ((None,), "", False, ["the build was stopped"]),
        ((0,), "no kernels", False, ["no kernels"]),
    ],
)
def test_every_way_to_fail_is_told(
    statuses: tuple[int | None, ...],
    missing: str,
    passed: bool,
    notes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _calls(monkeypatch, *statuses)
    monkeypatch.setattr(build, "missing", lambda _: missing)
    this = stage(tmp_path, "build")
    assert build.build(this) == passed
    assert this.record.read()["notes"] == notes


def test_a_fresh_process_is_asked() -> None:
    assert build.missing("abacus") == "no kernel exists for abacus yet"


def test_a_told_commit_counts_where_there_is_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDEFORM_COMMIT", "0123456789ab")
    this = stage(tmp_path, "environment")
    assert build.describe(this)
    (facts,) = this.record.read()["rows"]
    assert facts["commit"] == "0123456789ab"
    assert facts["command"] == "python -m benchmarks gpu-check environment"


# -- what was built elsewhere --------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a module that was built just now, with CUDA for sm_90."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / prebuilt._MODULE).write_text("a module")
    cuda = {"version": "13.0", "architectures": ["90"], "ptx": "90"}
    record = {"native": None, "no_native": "", "cuda": cuda, "no_cuda": ""}
    (folder / "_build.json").write_text(json.dumps(record))
    monkeypatch.setattr(prebuilt, "_PACKAGE", folder)
    monkeypatch.setattr(prebuilt._build, "_RECORD", folder / "_build.json")
    return folder


@pytest.fixture
def packed(package: Path, tmp_path: Path) -> Path:
    assert main(["prebuilt", str(tmp_path / "packed")]) == 0
    for path in package.iterdir():
        path.unlink()
    return tmp_path / "packed"


def test_a_packed_module_is_put_back(packed: Path, package: Path) -> None:
    assert prebuilt.install(packed, "90") == ""
    assert (package / prebuilt._MODULE).read_text() == "a module"
    assert json.loads((package / "_build.json").read_text())["cuda"]["architectures"] == ["90"]


def test_a_module_that_is_loaded_stays_as_it_is(packed: Path, package: Path) -> None:
    """What is written into a file that a process has loaded crashes it."""
    (package / prebuilt._MODULE).write_text("a loaded module")
    with (package / prebuilt._MODULE).open() as loaded:
        assert prebuilt.install(packed, "90") == ""
        assert loaded.read() == "a loaded module"
    assert (package / prebuilt._MODULE).read_text() == "a module"
    assert len(list(package.iterdir())) == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("python", "packed/ has no .*: it is for another Python"),
        ("sources", "packed/ was built from other sources"),
        ("gpu", "packed/ was built for 90"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(
    spoil: str, reason: str, packed: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil == "python":
        (packed / prebuilt._MODULE).rename(packed / "_C.cpython-39-x86_64-linux-gnu.so")
    if spoil == "sources":
        monkeypatch.setattr(prebuilt, "digest", lambda: "another")
    said = prebuilt.install(packed, "80" if spoil == "gpu" else "90")
    assert re.fullmatch(reason, said)
    assert not list(package.iterdir())


def test_sources_have_another_name_when_one_of_them_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "csrc" / "cuda" / "a.cu"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(prebuilt, "ROOT", tmp_path)
    names = set()
    for text in ("one", "two"):
        source.write_text(text)
        names.add(prebuilt.digest())
    source.rename(source.with_name("b.cu"))
    names.add(prebuilt.digest())
    assert len(names) == 3


def test_a_module_older_than_its_sources_is_not_packed(package: Path, tmp_path: Path) -> None:
    os.utime(package / prebuilt._MODULE, (0, 0))
    with pytest.raises(SystemExit, match="is newer than the module"):
        main(["prebuilt", str(tmp_path / "packed")])
    (package / prebuilt._MODULE).unlink()
    with pytest.raises(SystemExit, match="nothing is built in place with CUDA"):
        main(["prebuilt", str(tmp_path / "packed")])


@pytest.mark.parametrize("fits", [True, False])
def test_nothing_is_built_where_what_was_brought_along_fits(
    fits: bool, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _calls(monkeypatch, *([0] if fits else [0, 0]))
    monkeypatch.setattr(build, "missing", lambda _: "")
    if not fits:
        monkeypatch.setattr(prebuilt, "digest", lambda: "another")
    this = stage(tmp_path, "build")
    this = dataclasses.replace(this, prebuilt=packed)
    assert build.build(this)
    assert len(given) == (1 if fits else 2)  # python -m stdeform, and a build before
    note = "taken from packed/" if fits else "packed/ was built from other sources; building"
    assert this.record.read()["notes"] == [note]
