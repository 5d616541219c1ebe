"""`python -m benchmarks gpu-check`, walked through without a GPU, and stopped in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.costs import traffic
from benchmarks.gpu import check
from benchmarks.gpu.stage import FINDINGS, RESULTS, Found, read
from benchmarks.measure import processes
from benchmarks.measure.recording import SCHEMA, load_rows
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import WORKLOADS, make_inputs
from stdeform import _native
from tests.benchmarks.gpu.test_stage import stage

pytestmark = pytest.mark.usefixtures("needs_native")
ROOT = Path(__file__).parents[3]
RUN = processes.run
DRY = ["gpu-check", "--device", "cpu", "--quick"]


# Those that compile for minutes, those without a GPU's tools, and the twin of one.
LEFT_OUT = ("build", "variants", "ncu", "memcheck", "racecheck", "initcheck", "matrix")
OF_MODELS = {"model", "memory of models", "memory of modules"}


@pytest.mark.slow
def test_a_dry_run_shows_what_every_stage_has_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [name for name in check.STAGES if name not in LEFT_OUT]
    assert main([*DRY, *stages, "--output", str(tmp_path), "--patience", "5"]) == 0
    found = read(tmp_path)
    assert list(found) == stages
    assert all(stage["passed"] for stage in found.values())
    (facts,) = found["environment"]["rows"]
    assert facts["simd"] == _native.usable_isas()[0]
    assert all(row["outcome"] == "passed" for row in found["result-tests"]["rows"])
    assert all(row["error"] <= 1 for row in found["every-kernel"]["rows"])
    assert found["result-tests"]["rows"]
    assert found["every-kernel"]["rows"]
    measured = load_rows([tmp_path / RESULTS])
    assert {row["measurement"] for row in measured} == {"latency", "kernels", "tuning", *OF_MODELS}
    beside = [row for row in measured if "shrunk" in row["label"]]
    rows = [row for row in measured if row["measurement"] == "latency" and row not in beside]
    assert len(rows) == 2 * 3 * 3  # dtypes, modes, variants
    counted = traffic.added_numbers(WORKLOADS["tiny"], make_inputs(WORKLOADS["tiny"], 0))
    for row in rows:
        if (row["variant"], row["mode"]) == ("native", "backward"):
            assert (row["added_numbers"], row["added"]) == counted
        assert row.get("backend") == ("flash for cpu" if row["variant"] == "dense" else None)
    page = (tmp_path / "gpu-check.md").read_text()
    assert "| tiny, float32 " in page
    assert [row["library"] for row in found["third-party"]["rows"]] == list(THIRD_PARTY)
    for row in found["third-party"]["rows"]:
        assert f"- {row['library']}: {row['reason'] or 'timed'}\n" in page
    printed = capfd.readouterr().out
    assert len(printed) < 12_000
    assert "- result-tests: passed in " in printed


# -- the plan ------------------------------------------------------------------------------------


def test_every_stage_is_part_of_a_command_and_tells_of_what_was_built() -> None:
    assert {name for stages in check.COMMANDS.values() for name in stages} == set(check.STAGES)
    assert not set(check.COMMANDS) & set(check.STAGES)
    for stages in check.COMMANDS.values():
        assert stages[:2] == ("build", "environment")
        assert sum(check.STAGES[name][1] for name in stages) <= 540  # nine minutes
    # What takes all the time that is left comes after what has a limit of its own.
    assert check.COMMANDS["full"][-1] == "matrix"
    # Times before tests.
    assert check.COMMANDS["alive"].index("benchmark") < check.COMMANDS["alive"].index("cuda-tests")


def test_commands_and_stages_are_named_alike() -> None:
    assert check.planned(["ncu", "build"]) == ["ncu", "build"]
    both = check.planned(["alive", "tests", "memcheck"])
    assert both == [*check.COMMANDS["alive"], *check.COMMANDS["tests"][2:]]
    for words in ([], ["nothing"]):
        with pytest.raises(SystemExit):
            main([*DRY, *words])


def test_a_stage_has_what_those_before_it_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def run(command: list[str], seconds: float, log: Path, _: object) -> int:
        log.touch()
        given.append(seconds)
        return 0

    monkeypatch.setattr(processes, "run", run)
    assert main([*DRY, "tests", "--patience", "2", "--output", str(tmp_path)]) == 0
    limits = [2 * check.STAGES[name][1] for name in check.COMMANDS["tests"]]
    assert given == pytest.approx([sum(limits[: i + 1]) for i in range(len(limits))], abs=5)


# -- what goes wrong -------------------------------------------------------------------------------


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, body: str, *words: str) -> Found:
    """Runs a stage with a function made of `body`, in a process of its own as always."""
    (folder / "planted.py").write_text(
        "import os, sys, time\nfrom benchmarks.gpu import check\n"
        "from benchmarks.gpu.stage import LostDeviceError, Stage\n"
        f"def function(stage):\n    {body.replace(chr(10), chr(10) + '    ')}\n"
        f"check.STAGES[{name!r}] = (function, 60)\n"
        "sys.exit(check.run_here(Stage.of_environment()))\n"
    )

    def planted(
        command: list[str], seconds: float, log: Path, environment: dict[str, str]
    ) -> int | None:
        assert command[1:] == ["-m", "benchmarks.gpu.check"]
        changed = [command[0], str(folder / "planted.py")]
        return RUN(changed, seconds, log, {**environment, "PYTHONPATH": str(ROOT)})

    monkeypatch.setattr(processes, "run", planted)
    main([*DRY, name, "--output", str(folder), *words])
    return read(folder)[name]


def test_a_stage_that_fails_is_told_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, "tests").write(end={"passed": True})
    found = _run(monkeypatch, tmp_path, "ceilings", "raise RuntimeError('the reason\\nand more')")
    assert (found["passed"], found["notes"]) == (False, ["RuntimeError: the reason"])
    assert read(tmp_path)["tests"]["passed"]
    assert "- ceilings: FAILED in " in (tmp_path / "gpu-check.md").read_text()
    assert "and more" in (tmp_path / "gpu-check.log").read_text()
    assert len(list(tmp_path.glob("*.log"))) == 1  # a lent machine gives few files back


def test_a_stage_that_is_stopped_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"stage": "kernels", "row": {"a": 1}})
    path = str(tmp_path / FINDINGS)
    script = f"import time; print('\\n' + {line!r}, file=open({path!r}, 'a'), flush=True)"

    def planted(_: list[str], *rest: object) -> int | None:
        return RUN([sys.executable, "-c", f"{script}; time.sleep(100)"], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "run", planted)
    monkeypatch.setitem(check.STAGES, "kernels", (check.STAGES["kernels"][0], 4))
    assert main([*DRY, "kernels", "--output", str(tmp_path)]) == 1
    found = read(tmp_path)["kernels"]
    assert (found["rows"], found["passed"]) == ([{"a": 1}], False)
    assert re.fullmatch(r"stopped after \d+ s", found["notes"][-1])


@pytest.mark.parametrize("end", ["os.abort()", "raise LostDeviceError('illegal access')"])
def test_a_stage_goes_on_behind_what_has_ended_its_process(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "for name in 'abcd':\n    if name in stage.read()['tried']: continue\n"
        f"    stage.write(trying=name)\n    if name in 'bc': {end}\n"
        "    stage.write(row=dict(of=name))\n"
        "return True"
    )
    found = _run(monkeypatch, tmp_path, "every-kernel", body, "--patience", "3")
    assert [row["of"] for row in found["rows"]] == ["a", "d"]
    assert found["tried"] == list("abcd")
    # One that gets no further is not started for ever.
    found = _run(monkeypatch, tmp_path, "ceilings", end, "--patience", "3")
    assert not found["passed"]
    assert re.search(r"its process ended with status -?\d+, see gpu-check.log", found["notes"][-1])


def test_a_runner_that_is_killed_leaves_every_row(tmp_path: Path) -> None:
    """Killed without a signal to catch: rows, and no half of one, are on the disk all the same."""
    command = [sys.executable, "-m", "benchmarks", *DRY, "environment", "every-kernel"]
    command += ["--patience", "5"]
    runner = subprocess.Popen([*command, "--output", str(tmp_path)], cwd=ROOT)
    try:
        end = time.monotonic() + 120
        while not read(tmp_path).get("every-kernel", {}).get("rows"):
            assert time.monotonic() < end
            assert runner.poll() is None
            time.sleep(0.05)
        os.kill(runner.pid, signal.SIGKILL)
    finally:
        processes._stop(runner.pid)
        runner.wait()
    found = read(tmp_path)
    assert found["environment"]["passed"]
    assert found["environment"]["rows"][0]["device"] == "cpu"
    assert found["every-kernel"]["rows"]
    assert not found["every-kernel"]["passed"]
    assert "- environment: passed in" in (tmp_path / "gpu-check.md").read_text()


def test_a_page_that_fails_does_not_stop_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], seconds: float, log: Path, _: object) -> int:
        log.touch()
        header = {"schema": SCHEMA, "suite": "gpu-check", "device": "cpu"}
        (tmp_path / RESULTS).write_text(f'{json.dumps(header)}\n{{"measurement": "latency"}}\n')
        return 0

    monkeypatch.setattr(processes, "run", run)
    assert main([*DRY, "ceilings", "ncu", "--output", str(tmp_path)]) == 0
    assert list(read(tmp_path)) == ["ceilings", "ncu"]
    assert "KeyError" in capsys.readouterr().out
    assert "KeyError" in (tmp_path / "gpu-check.md").read_text()


def test_the_page_about_it_names_every_stage_and_its_limit() -> None:
    page = (ROOT / "docs" / "internals" / "cuda-kernels.md").read_text()
    assert all(f"gpu-check {command}\n" in page for command in check.COMMANDS)
    for name, (_, limit) in check.STAGES.items():
        assert re.search(rf"(?m)^\|.*\| .*`{name}`.* \|.*\b{limit}\b.* \|", page), name
