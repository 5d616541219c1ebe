"""`python -m benchmarks gpu-check`, walked through without a GPU, and device timing."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import additions, gpu_check
from benchmarks.__main__ import main
from benchmarks.device_timing import time_calls
from benchmarks.peer_check import Finding
from benchmarks.peers import PEERS
from benchmarks.workloads import WORKLOADS, make_inputs

pytestmark = pytest.mark.usefixtures("needs_native")
DRY = ["gpu-check", "--device", "cpu", "--quick"]


def test_the_dry_run_shows_every_stage_but_the_build(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [name for name in gpu_check._STAGES if name != "build"]  # it would take minutes
    assert main([*DRY, "--output", str(tmp_path), "--stages", *stages]) == 0
    results = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(results) == stages
    assert results["tests"]["passed"]
    assert "passed" in results["tests"]["summary"]
    rows = results["benchmark"]["rows"]
    assert len(rows) == 2 * 3 * 3  # dtypes, modes, variants
    for row in rows:
        assert 0 < row["host"]["median"] <= row["wall"]["median"]
        assert row["seconds"]["median"] > 0
        assert row["flushed"]["median"] > 0
        is_backward = (row["variant"], row["mode"]) == ("native", "backward")
        assert ("added_numbers" in row) == is_backward
        if is_backward:
            bins = additions.sort_into_bins(WORKLOADS["tiny"], make_inputs(WORKLOADS["tiny"], 0))
            counted = additions.count(bins, WORKLOADS["tiny"].head_dim)
            assert (row["added_numbers"], row["added"]) == (counted.direct, "one by one")
    page = (tmp_path / "gpu-check.md").read_text()
    assert page in capfd.readouterr().out
    beside = [row for peer in results["peers"]["peers"].values() for row in peer["rows"]]
    lines = re.sub(" +", " ", page)
    for row in (*rows, *beside):
        name = f"{row['variant']} ({row['backend']})" if "backend" in row else row["variant"]
        assert f"| {row['label']} | {row['mode']} | {name} |" in lines
        assert row.get("backend") == ("flash for cpu" if row["variant"] == "dense" else None)
    assert list(results["peers"]["peers"]) == list(PEERS)
    for name, found in results["peers"]["peers"].items():
        assert f"- {name}: {found['reason'] or 'timed'}\n" in page


def test_a_stage_that_fails_is_told_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu-check.json").write_text(json.dumps({"tests": {"passed": True, "seconds": 1}}))

    def fail(*_: object) -> gpu_check.Report:
        raise RuntimeError("the reason")

    monkeypatch.setitem(gpu_check._STAGES, "build", fail)
    assert main([*DRY, "--output", str(tmp_path), "--stages", "build"]) == 1
    results = json.loads((tmp_path / "gpu-check.json").read_text())
    assert results["tests"]["passed"]
    assert results["build"]["error"] == "RuntimeError: the reason"
    assert "build: FAILED" in (tmp_path / "gpu-check.md").read_text()


def test_a_stage_that_is_stopped_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> None:
        partial = {"benchmark": {"passed": True, "rows": [], "left out": "the rest", "seconds": 1}}
        if command[-1] == "benchmark":
            (tmp_path / "gpu-check.json").write_text(json.dumps(partial))
        raise subprocess.TimeoutExpired(command, 110)

    monkeypatch.setattr(subprocess, "run", run)
    assert main([*DRY, "--output", str(tmp_path), "--stages", "benchmark", "sanitizer"]) == 1
    stage = json.loads((tmp_path / "gpu-check.json").read_text())["benchmark"]
    assert (stage["left out"], stage["error"]) == ("the rest", "stopped")


def test_stages_may_take_the_time_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, float] = {}

    def run(command: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        limits[command[-1]] = timeout
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    words = ["--output", str(tmp_path), "--full", "--seconds", "3000", "--peer-seconds", "900"]
    assert main([*DRY, *words]) == 0
    assert list(limits) == list(gpu_check._STAGES)
    assert (limits["benchmark"], limits["peers"]) == (3020, 920)


def test_the_usual_check_ends_within_ten_minutes() -> None:
    parser = argparse.ArgumentParser()
    gpu_check.add_arguments(parser)
    usual = parser.parse_args([])
    assert sum(gpu_check._LIMITS.values()) + usual.seconds + gpu_check._GRACE <= 600


def test_peers_share_the_time_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def check(*_: object, seconds: float, **__: object) -> Finding:
        given.append(seconds)
        return Finding(rows=[], reason="stopped")

    monkeypatch.setattr(gpu_check, "check_peer", check)
    # Every look at the clock is 5 s later than the one before.
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: next(clock))
    options = argparse.Namespace(
        peers=tmp_path, peer_seconds=30, device="cpu", rounds=3, quick=True, output=tmp_path
    )
    result = gpu_check._peers(options, [])
    assert result["passed"]
    assert given == [25, 15]
    reasons = [found["reason"] for found in result["peers"].values()]
    assert reasons == ["stopped"] * 2 + ["no time was left"] * (len(PEERS) - 2)


def test_a_test_run_that_ran_nothing_has_failed() -> None:
    outcome = gpu_check._pytest(["tests/test_gpu_check.py", "-k", "no_such_test"])
    assert not outcome["passed"]


def test_sanitizer_reports_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "3 passed in 1s\n========= ERROR SUMMARY: 2 errors\n"

    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 9, told)

    monkeypatch.setattr(subprocess, "run", run)
    outcome = gpu_check._pytest([], ["compute-sanitizer"])
    assert (outcome["passed"], outcome["errors"]) == (False, 2)


def test_device_times_of_the_cpu() -> None:
    tasks = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}
    times = time_calls(tasks, "cpu", rounds=3)
    for name, seconds in (("short", 0.001), ("long", 0.004)):
        for what in (times[name].device, times[name].host, times[name].wall):
            assert what.median >= seconds
        assert len(times[name].rounds) == 3
    assert times["long"].device.median > 2 * times["short"].device.median


def test_it_is_a_command_of_its_own() -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu-check", "--help"]
    told = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert all(stage in told for stage in gpu_check._STAGES)
