"""What a stage of `gpu-check` has found is there, whenever it is stopped; a lost GPU is seen."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import stage as stages
from benchmarks.gpu.stage import FINDINGS, LostDeviceError, Stage


def stage(folder: Path, name: str, *, seconds: float = 120, device: str = "cpu") -> Stage:
    deadline = time.monotonic() + seconds
    return Stage(name, str(folder), device, deadline, quick=True, words=(name,))


def test_a_stage_reads_as_it_was_written(tmp_path: Path) -> None:
    this = stage(tmp_path, "first")
    this.write(began=True)
    this.write(row={"a": 1})
    this.note("a sentence")
    this.write(trying="something")
    found = {"rows": [{"a": 1}], "notes": ["a sentence"], "tried": ["something"], "done": []}
    assert this.read() == {**found, "passed": False, "seconds": None}
    this.write(done="something")
    this.write(end={"passed": True, "seconds": 1.2})
    assert this.read() == {**found, "done": ["something"], "passed": True, "seconds": 1.2}


def test_a_stage_that_runs_again_replaces_what_it_had_said(tmp_path: Path) -> None:
    for name in ("first", "second"):
        stage(tmp_path, name).write(row={"of": name})
        stage(tmp_path, name).write(end={"passed": True})
    stage(tmp_path, "first").write(began=True)
    found = stages.read(tmp_path)
    assert list(found) == ["first", "second"]
    assert (found["first"]["rows"], found["first"]["passed"]) == ([], False)
    assert found["second"]["rows"] == [{"of": "second"}]


def test_half_a_line_costs_no_other(tmp_path: Path) -> None:
    this = stage(tmp_path, "first")
    this.write(row={"a": 1})
    with (tmp_path / FINDINGS).open("a") as file:
        file.write('\n{"stage": "first", "row": {"a"')
    assert this.read()["rows"] == [{"a": 1}]
    this.write(row={"a": 2})
    assert this.read()["rows"] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("is_full", [True, False])
def test_a_lost_device_is_told_from_a_full_one(
    is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.cuda.OutOfMemoryError if is_full else RuntimeError

    def ones(*_: object, **__: object) -> None:
        raise error("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr("torch.ones", ones)
    this = stage(tmp_path, "first", device="cuda")
    if is_full:
        this.check_device()
    else:
        with pytest.raises(LostDeviceError, match=r"^CUDA error: an illegal memory access$"):
            this.check_device()
