"""What `gpu-check` times: a wrong answer costs the rows of who gave it, and ours are marked."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import benchmark, plan, third_party
from benchmarks.gpu.stage import RESULTS, LostDeviceError, Stage
from benchmarks.measure import isolated
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row
from benchmarks.subjects.base import Case, Implementation, WrongAnswerError
from benchmarks.subjects.defvis_model import PARTS
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY, ThirdParty
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.gpu.test_stage import stage

CASE = plan.Case(WORKLOADS["tiny"])
MODES = 3


def _plant(
    monkeypatch: pytest.MonkeyPatch, name: str, change: float = 1.1, error: str = ""
) -> None:
    """Lets a variant answer wrongly, or not at all."""
    right = IMPLEMENTATIONS[name]

    def prepare(*how: object) -> Case:
        prepared = right.prepare(*how)  # type: ignore[arg-type]

        def attend(*inputs: torch.Tensor) -> torch.Tensor:
            if error:
                raise RuntimeError(error)
            return change * prepared.function(*inputs)

        return prepared._replace(function=attend)

    monkeypatch.setitem(IMPLEMENTATIONS, name, dataclasses.replace(right, prepare=prepare))


def _rows(folder: Path) -> list[Row]:
    return load_rows([folder / RESULTS])


def _variants(folder: Path) -> list[str]:
    return sorted({row["variant"] for row in _rows(folder)})


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("name", ["composite", "dense"])
@pytest.mark.parametrize("error", ["", "no memory\nand pages more"])
def test_a_wrong_baseline_costs_its_own_rows(
    name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, name, error=error)
    this = stage(tmp_path, "benchmark")
    assert benchmark._time_cases(this, [CASE])
    found = this.read()
    assert _variants(tmp_path) == sorted({"native", "composite", "dense"} - {name})
    assert len(_rows(tmp_path)) == 2 * MODES
    reason = "RuntimeError: no memory" if error else f"WrongAnswerError: {name}: its result is "
    (note,) = found["notes"]
    assert note.startswith(f"tiny, float32: {name}: {reason}")


@pytest.mark.usefixtures("needs_native")
def test_ours_are_timed_even_if_wrong_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, "native")
    this = stage(tmp_path, "benchmark")
    assert not benchmark._time_cases(this, [CASE])
    assert _variants(tmp_path) == ["composite", "dense", "native"]
    for row in _rows(tmp_path):
        assert ("wrong" in row) == (row["variant"] == "native")


# -- time --------------------------------------------------------------------------------------


def _cases() -> list[plan.Case]:
    return plan.usual(quick=True)


def _time(monkeypatch: pytest.MonkeyPatch, seconds: float = 0, fails: str = "") -> None:
    """Lets cases take `seconds`, and the one with a dtype fail."""

    def time_case(case: plan.Case, this: Stage) -> bool:
        time.sleep(seconds)
        if case.workload.dtype == fails:
            raise RuntimeError("off\nby far")
        return True

    monkeypatch.setattr(benchmark, "_time_case", time_case)


def test_a_case_that_takes_longer_than_is_left_does_not_stop_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = _cases()
    slow = dataclasses.replace(first, seconds=1000)
    _time(monkeypatch)
    this = stage(tmp_path, "benchmark")
    assert benchmark._time_cases(this, [slow, *others])
    found = this.read()
    assert found["notes"] == [f"no time for 1: {slow.label}"]
    assert found["done"] == [case.label for case in others]


def test_what_has_no_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = plan.usual(quick=False)
    _time(monkeypatch, seconds=0.4)
    this = stage(tmp_path, "benchmark", seconds=4.5)  # three of them to say what was found
    benchmark._time_cases(this, cases)
    found = this.read()
    done = len(found["done"])
    assert 0 < done <= 3  # a fourth would end too late
    assert found["done"] == [case.label for case in cases[:done]]
    assert found["notes"][0].startswith(f"no time for {len(cases) - done}: {cases[done].label}; ")


@pytest.mark.parametrize("takes_the_gpu_along", [False, True])
def test_a_case_that_fails_is_told_and_the_others_are_timed(
    takes_the_gpu_along: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_device(_: Stage) -> None:
        if takes_the_gpu_along:
            raise LostDeviceError("illegal access")

    _time(monkeypatch, fails="float32")
    monkeypatch.setattr(Stage, "check_device", check_device)
    this = stage(tmp_path, "benchmark")
    with pytest.raises(LostDeviceError) if takes_the_gpu_along else contextlib.nullcontext():
        assert not benchmark._time_cases(this, _cases())
    assert not benchmark._time_cases(this, _cases())  # as in the next process
    found = this.read()
    assert found["notes"] == ["tiny, float32: RuntimeError: off"]
    assert found["done"] == [_cases()[1].label]


@pytest.mark.usefixtures("needs_native")
def test_a_case_of_the_forward_alone_runs_nothing_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = IMPLEMENTATIONS["composite"].prepare(CASE.workload, 0)

    def composite(*inputs: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return right.function(*inputs)

    prepared = right._replace(function=composite)
    variant = Implementation("composite", lambda *_: prepared)
    monkeypatch.setitem(IMPLEMENTATIONS, "composite", variant)
    case = plan.Case(CASE.workload, ("composite",), ("forward",))
    assert benchmark._time_case(case, stage(tmp_path, "benchmark"))
    assert [row["mode"] for row in _rows(tmp_path)] == ["forward"]


@pytest.mark.parametrize("is_unbuilt", [False, True])
def test_a_part_of_the_models_that_fails_costs_no_other(
    is_unbuilt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Planted:
        def __init__(self, quick: bool, precision: str, device: str, seed: int) -> None:
            made.append(precision)
            if is_unbuilt and precision == "bf16":
                raise WrongAnswerError("encoder")
            self.precision = precision

        def measure(self, part: str, threads: int, seconds: float) -> Iterator[Row]:
            if self.precision == "bf16" and part == "network":
                raise torch.OutOfMemoryError("no memory")
            yield {"measurement": "model", "label": part, "variant": self.precision}

    monkeypatch.setattr(benchmark, "Subjects", Planted)
    this = stage(tmp_path, "models")
    assert not benchmark.models(this)
    right = ["fp32"] if is_unbuilt else ["fp32", "bf16"]
    expected = [f"{part}, {each}" for part in PARTS for each in right]
    expected = [each for each in expected if each != "network, bf16"]
    assert this.read()["done"] == expected
    assert [f"{row['label']}, {row['variant']}" for row in _rows(tmp_path)] == expected
    reason = "WrongAnswerError: encoder" if is_unbuilt else "OutOfMemoryError: no memory"
    assert this.read()["notes"][0] == f"network, bf16: {reason}"
    assert made.count("fp32") == 1  # models of full size are made once


def test_baselines_share_the_time_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def call(*_: object, seconds: float) -> tuple[list[Row], str]:
        given.append(seconds)
        return [{"measurement": "some"}], "stopped"

    monkeypatch.setattr(isolated, "call", call)
    monkeypatch.setattr(ThirdParty, "is_installed", True)
    left = itertools.chain((60, 40), itertools.repeat(9))
    monkeypatch.setattr(Stage, "left", property(lambda _: next(left)))
    this = stage(tmp_path, "third-party")
    assert third_party.run(this)
    assert given == [60, 40]
    assert len(_rows(tmp_path)) == 2  # what is stopped keeps its rows
    rows = this.read()["rows"]
    assert [row["library"] for row in rows] == list(THIRD_PARTY)
    reasons = [row["reason"] for row in rows]
    assert reasons == ["stopped"] * 2 + ["no time was left"] * (len(THIRD_PARTY) - 2)
