"""What `gpu-check` times: a wrong answer costs the rows of who gave it, and ours are marked."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_benchmark, gpu_plan
from benchmarks.gpu.gpu_job import Job, LostDeviceError
from benchmarks.gpu.third_party_check import Finding
from benchmarks.measure import device_timing
from benchmarks.measure.device_timing import time_calls
from benchmarks.report import gpu_page
from benchmarks.subjects.base import Case
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.gpu.test_gpu_tests import job

CASE = gpu_plan.Case(WORKLOADS["tiny"])
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


def _variants(found: dict[str, object]) -> list[str]:
    rows: list[dict[str, str]] = found["rows"]  # type: ignore[assignment]
    return sorted({row["variant"] for row in rows})


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("name", ["composite", "dense"])
@pytest.mark.parametrize("error", ["", "no memory\nand pages more"])
def test_a_wrong_baseline_costs_its_own_rows(
    name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, name, error=error)
    this = job(tmp_path, "benchmark")
    assert gpu_benchmark._time_cases(this, [CASE])
    found = this.record.read()
    assert _variants(found) == sorted({"native", "composite", "dense"} - {name})
    assert len(found["rows"]) == 2 * MODES
    reason = "RuntimeError: no memory" if error else f"WrongAnswerError: {name}: its result is "
    (note,) = found["notes"]
    assert note.startswith(f"tiny, float32: {name}: {reason}")


@pytest.mark.usefixtures("needs_native")
def test_ours_are_timed_even_if_wrong_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, "native")
    this = job(tmp_path, "benchmark")
    assert not gpu_benchmark._time_cases(this, [CASE])
    found = this.record.read()
    assert _variants(found) == ["composite", "dense", "native"]
    for row in found["rows"]:
        assert ("wrong" in row) == (row["variant"] == "native")
    assert "native (WRONG)" in gpu_page.times(found["rows"])


def test_a_bar_is_not_met_by_a_wrong_answer() -> None:
    row = {
        "label": "paper-encoder, float32",
        "mode": "forward",
        "variant": "native",
        "seconds": {"median": 1e-6},
    }
    assert "| pass " in gpu_plan.verdicts([row], on_gpu=True)
    told = gpu_plan.verdicts([{**row, "wrong": "by far"}], on_gpu=True)
    assert "| WRONG ANSWER " in told
    assert "| pass " not in told


# -- time --------------------------------------------------------------------------------------


def _cases() -> list[gpu_plan.Case]:
    return gpu_plan.cases(quick=True, full=False)


def _time(monkeypatch: pytest.MonkeyPatch, seconds: float = 0, fails: str = "") -> None:
    """Lets cases take `seconds`, and the one with a dtype fail."""

    def time_case(case: gpu_plan.Case, this: Job) -> None:
        time.sleep(seconds)
        if case.workload.dtype == fails:
            raise RuntimeError("off\nby far")
        this.record.row({"key": case.key, "variant": "native"})

    monkeypatch.setattr(gpu_benchmark, "_time_case", time_case)


def test_a_case_that_takes_longer_than_is_left_does_not_stop_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = _cases()
    slow = dataclasses.replace(first, seconds=1000)
    _time(monkeypatch)
    this = job(tmp_path, "benchmark")
    assert gpu_benchmark._time_cases(this, [slow, *others])
    found = this.record.read()
    assert found["notes"] == [f"no time for 1: {slow.label}"]
    assert [row["key"] for row in found["rows"]] == [case.key for case in others]


def test_what_has_no_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = gpu_plan.cases(quick=False, full=False)
    _time(monkeypatch, seconds=0.4)
    this = job(tmp_path, "benchmark", seconds=4.5)  # three of them to say what was found
    gpu_benchmark._time_cases(this, cases)
    found = this.record.read()
    done = len(found["rows"])
    assert 0 < done <= 4
    assert [row["key"] for row in found["rows"]] == [case.key for case in cases[:done]]
    assert found["notes"][0].startswith(f"no time for {len(cases) - done}: {cases[done].label}; ")


def test_a_case_that_fails_is_told_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _time(monkeypatch, fails="float32")
    this = job(tmp_path, "benchmark")
    assert not gpu_benchmark._time_cases(this, _cases())
    found = this.record.read()
    assert found["notes"] == ["tiny, float32: RuntimeError: off"]
    assert [row["key"] for row in found["rows"]] == [_cases()[1].key]


def test_a_case_that_takes_the_gpu_along_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _time(monkeypatch, fails="float32")
    this = job(tmp_path, "benchmark")

    def check_device(_: Job) -> None:
        raise LostDeviceError("illegal access")

    monkeypatch.setattr(Job, "check_device", check_device)
    with pytest.raises(LostDeviceError):
        gpu_benchmark._time_cases(this, _cases())
    assert not gpu_benchmark._time_cases(this, _cases())  # as in the next process
    assert [row["key"] for row in this.record.read()["rows"]] == [_cases()[1].key]


@pytest.mark.usefixtures("needs_native")
def test_a_case_of_the_forward_alone_runs_nothing_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = gpu_plan.Case(WORKLOADS["tiny"], ("composite",), ("forward",))

    def composite(*arguments: object) -> torch.Tensor:
        out: torch.Tensor = right.function(*arguments)
        out.register_hook(lambda _: pytest.fail("run backward")) if out.requires_grad else None
        return out

    right = IMPLEMENTATIONS["composite"].prepare(case.workload, 0)
    variant = dataclasses.replace(
        IMPLEMENTATIONS["composite"], prepare=lambda *_: right._replace(function=composite)
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "composite", variant)
    this = job(tmp_path, "benchmark")
    gpu_benchmark._time_case(case, this)
    assert [row["mode"] for row in this.record.read()["rows"]] == ["forward"]


def test_peers_share_the_time_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def check(*_: object, seconds: float, **__: object) -> Finding:
        given.append(seconds)
        return Finding(rows=[], reason="stopped")

    monkeypatch.setattr(gpu_benchmark, "check_third_party", check)
    left = iter((60, 60, 40, 40, 9, 8, 7, 6))
    monkeypatch.setattr(Job, "left", property(lambda _: next(left)))
    this = job(tmp_path, "peers")
    assert gpu_benchmark.peers(this)
    assert given == [60, 40]
    rows = this.record.read()["rows"]
    assert [row["peer"] for row in rows] == list(THIRD_PARTY)
    reasons = [row["reason"] for row in rows]
    assert reasons == ["stopped"] * 2 + ["no time was left"] * (len(THIRD_PARTY) - 2)


# -- device times --------------------------------------------------------------------------------


def test_device_times_of_the_cpu() -> None:
    tasks = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}
    times = time_calls(tasks, "cpu", rounds=3)
    for name, seconds in (("short", 0.001), ("long", 0.004)):
        for what in (times[name].device, times[name].host, times[name].wall):
            assert what.median >= seconds
        assert len(times[name].rounds) == 3
    assert times["long"].device.median > 2 * times["short"].device.median


@pytest.mark.parametrize("room", [1000, 64, 1])
def test_a_block_has_no_more_calls_than_the_queue_has_room_for(room: int) -> None:
    """A device of a queue: beyond its room the host waits, and is not ahead."""

    class Clock(device_timing._CpuClock):
        def block(self, run: object, calls: int, host: float) -> tuple[float, bool]:
            return 1e-6, calls <= room

    calls = device_timing._calls(Clock(), lambda: None)
    assert calls == {1000: 200, 64: 50, 1: 1}[room]
