"""The stages of `gpu-check` that test: every outcome is kept as it comes, faults are counted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import run_tests
from tests.benchmarks.gpu.test_stage import stage

ROOT = Path(__file__).parents[3]
SANITIZER = """#!/bin/sh
# Runs nothing, and prints what it is given, as compute-sanitizer would.
echo "========= COMPUTE-SANITIZER $*"
echo "caching: $PYTORCH_NO_CUDA_MEMORY_CACHING"
echo "========= {summary}"
exit {status}
"""


# -- sanitizers --------------------------------------------------------------------------------


def _plant(path: Path, summary: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = path / "compute-sanitizer"
    tool.write_text(SANITIZER.format(summary=summary, status=status))
    tool.chmod(0o755)
    monkeypatch.setattr(run_tests, "cuda_tool", lambda name: str(path / name))


@pytest.mark.parametrize(
    ("check", "summary", "status", "said"),
    [
        ("memcheck", "ERROR SUMMARY: 0 errors", 0, "faults: 0"),
        ("memcheck", "ERROR SUMMARY: 2 errors", 9, "faults: 2"),
        ("racecheck", "RACECHECK SUMMARY: 3 hazards displayed (3 errors)", 9, "faults: 3"),
        ("memcheck", "Device not supported", 1, "it has counted no faults to the end"),
        # What ends well without having counted has not looked.
        ("initcheck", "nothing", 0, "it has counted no faults to the end"),
    ],
)
def test_faults_are_counted(
    check: str,
    summary: str,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _plant(tmp_path, summary, status, monkeypatch)
    this = stage(tmp_path, check)
    assert run_tests.sanitize(this) == (said == "faults: 0")
    assert this.read()["notes"][-1] == said


def test_sanitizers_see_every_allocation_and_our_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(tmp_path, "ERROR SUMMARY: 0 errors", 0, monkeypatch)
    said = {}
    for check in ("memcheck", "racecheck", "initcheck"):
        run_tests.sanitize(stage(tmp_path, check))
        said[check] = (tmp_path / f"{check}.log").read_text()
        assert f"--tool {check}" in said[check]
        assert "caching: 1" in said[check]
        assert "-m benchmarks.gpu.every_kernel" in said[check]
    assert " --destroy-on-device-error kernel --kernel-name kns=stdeform" in said["memcheck"]
    assert "--report-api-errors no --padding 256 " in said["memcheck"]
    assert "--kernel-name kns=stdeform" in said["racecheck"]
    # PyTorch's kernels write what ours read.
    assert "--kernel-name" not in said["initcheck"]


def test_a_sanitizer_that_is_stopped_keeps_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    # Finds something, runs a problem, and then hangs.
    row = '{"stage": "memcheck", "row": {"problem": "first", "error": 0.1}}'
    tool.write_text(
        "#!/bin/sh\necho '========= Invalid __global__ write'\n"
        f"echo '{row}' > {tmp_path}/gpu-check.jsonl\nsleep 60\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(run_tests, "cuda_tool", lambda _: str(tool))
    this = stage(tmp_path, "memcheck", seconds=5)
    assert not run_tests.sanitize(this)
    found = this.read()
    assert found["notes"] == [
        "compute-sanitizer --tool memcheck was stopped, see gpu-check.log",
        "it has counted no faults to the end",
    ]
    assert [row["problem"] for row in found["rows"]] == ["first"]
    assert "Invalid __global__ write" in (tmp_path / "memcheck.log").read_text()


def test_without_a_sanitizer_only_a_walk_through_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tests, "cuda_tool", lambda _: None)
    assert run_tests.sanitize(stage(tmp_path, "memcheck"))
    assert not run_tests.sanitize(stage(tmp_path, "memcheck", device="cuda"))


# -- pytest ------------------------------------------------------------------------------------

TESTS = """
import os, pytest

def test_right(): pass
def test_wrong(): assert [1, 2] == [1, 3], "the reason"
@pytest.mark.skip(reason="not here")
def test_left_out(): pass
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_broken(broken): pass
def test_abort(): os.abort()
"""


def test_every_outcome_is_a_row_before_the_next_test_runs(tmp_path: Path) -> None:
    path = tmp_path / "test_toy.py"
    path.write_text(TESTS)
    this = stage(tmp_path, "toy")
    assert not run_tests._pytest(this, str(path))
    found = this.read()
    outcomes = {row["test"].split("::")[1]: row["outcome"] for row in found["rows"]}
    assert outcomes == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_left_out": "skipped",
        "test_broken": "failed",
    }
    errors = [row["error"] for row in found["rows"] if "error" in row]
    assert "the reason" in errors[0]
    assert "no fixture" in errors[1]
    assert "ended with status -6" in found["notes"][0]


@pytest.mark.skipif(not importlib.util.find_spec("xdist"), reason="needs pytest-xdist")
def test_every_outcome_is_one_row_of_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_toy.py"
    path.write_text("import os\ndef test_right(): pass\ndef test_abort(): os.abort()\n")
    monkeypatch.setattr(run_tests.os, "sched_getaffinity", lambda _: range(4))
    this = stage(tmp_path, "toy")
    assert not run_tests._pytest(this, str(path))
    outcomes = [(row["test"].split("::")[1], row["outcome"]) for row in this.read()["rows"]]
    assert sorted(outcomes) == [("test_abort", "failed"), ("test_right", "passed")]


def test_a_test_run_that_ran_nothing_has_failed(tmp_path: Path) -> None:
    this = stage(tmp_path, "toy")
    file = "tests/benchmarks/gpu/test_stage.py"
    assert not run_tests._pytest(this, file, "-k", "no_such_test")
    assert run_tests._pytest(this, file, "-k", "half_a_line")


def test_the_tests_of_a_gpu_are_chosen_by_name() -> None:
    """What `tests` selects is there; test_cuda.py is a stage of its own and comes before."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", "emulated"]
    plain = {**os.environ, "PYTEST_ADDOPTS": ""}  # it may ask for other output
    done = subprocess.run(
        [*command, *run_tests._FILES], cwd=ROOT, text=True, capture_output=True, env=plain
    )
    assert done.returncode == 0, done.stdout
    assert all(f"{name}::" in done.stdout for name in run_tests._FILES)
