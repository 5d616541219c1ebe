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
from benchmarks.gpu import check, record
from benchmarks.gpu.record import Found
from benchmarks.gpu.stage import RESULTS, LostDeviceError, Stage
from benchmarks.measure import processes
from benchmarks.measure.recording import SCHEMA, load_rows
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import WORKLOADS, make_inputs
from stdeform import _native

pytestmark = pytest.mark.usefixtures("needs_native")
ROOT = Path(__file__).parents[3]
RUN = processes.run
DRY = ["gpu-check", "--device", "cpu", "--quick"]


def _read(folder: Path) -> dict[str, Found]:
    return record.read(folder / record.NAME)


# Those that compile for minutes, those without a GPU's tools, and the twin of one.
LEFT_OUT = ("build", "variants", "ncu", "memcheck", "racecheck", "initcheck", "matrix")


@pytest.mark.slow
def test_a_dry_run_shows_what_every_stage_has_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [name for name in check.STAGES if name not in LEFT_OUT]
    assert main([*DRY, *stages, "--output", str(tmp_path), "--patience", "5"]) == 0
    found = _read(tmp_path)
    assert list(found) == stages
    assert all(stage["passed"] for stage in found.values())
    assert record.facts(found)["simd"] == _native.usable_isas()[0]
    assert all(row["outcome"] == "passed" for row in found["result-tests"]["rows"])
    assert all(row["error"] <= 1 for row in found["every-kernel"]["rows"])
    assert found["result-tests"]["rows"]
    assert found["every-kernel"]["rows"]
    measured = load_rows([tmp_path / RESULTS])
    assert {row["measurement"] for row in measured} == {"latency", "kernels", "tuning"}
    beside = [row for row in measured if "shrunk" in row["label"]]
    rows = [row for row in measured if row["measurement"] == "latency" and row not in beside]
    assert len(rows) == 2 * 3 * 3  # dtypes, modes, variants
    for row in rows:
        assert row["seconds"]["median"] > 0
        is_backward = (row["variant"], row["mode"]) == ("native", "backward")
        assert ("added_numbers" in row) == is_backward
        if is_backward:
            counted = traffic.added_numbers(WORKLOADS["tiny"], make_inputs(WORKLOADS["tiny"], 0))
            assert (row["added_numbers"], row["added"]) == counted
    page = (tmp_path / "gpu-check.md").read_text()
    lines = re.sub(" +", " ", page)
    for row in (*rows, *beside):
        name = f"{row['variant']} ({row['backend']})" if "backend" in row else row["variant"]
        assert f"| {row['label']} | {row['mode']} | {name} |" in lines
        assert row.get("backend") == ("flash for cpu" if row["variant"] == "dense" else None)
    assert [row["library"] for row in found["third-party"]["rows"]] == list(THIRD_PARTY)
    for row in found["third-party"]["rows"]:
        assert f"- {row['library']}: {row['reason'] or 'timed'}\n" in page
    printed = capfd.readouterr().out
    assert len(printed) < 12_000
    assert "- result-tests: passed in " in printed


# -- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", check.COMMANDS)
def test_a_command_ends_within_nine_minutes(command: str) -> None:
    limits = check.planned([command], 1)
    assert sum(limits.values()) <= 540


def test_every_stage_is_part_of_a_command_and_tells_of_what_was_built() -> None:
    planned = [check.planned([command], 1) for command in check.COMMANDS]
    assert {name for limits in planned for name in limits} == set(check.STAGES)
    assert all(list(limits)[:2] == ["build", "environment"] for limits in planned)
    # Times before tests; what may say wrong things comes last.
    alive, tests = (list(check.planned([name], 1)) for name in ("alive", "tests"))
    assert alive.index("benchmark") < alive.index("cuda-tests")
    assert tests[-3:] == ["memcheck", "racecheck", "initcheck"]


def test_commands_and_stages_are_named_alike() -> None:
    assert list(check.planned(["ncu", "build"], 2)) == ["ncu", "build"]
    assert check.planned(["ncu"], 2)["ncu"] == 2 * check.COMMANDS["tune"]["ncu"]
    assert not set(check.COMMANDS) & set(check.STAGES)
    both = check.planned(["alive", "tests"], 1)
    assert both["build"] == check.COMMANDS["alive"]["build"]
    assert set(check.planned([], 1)) == set(check.STAGES)
    with pytest.raises(SystemExit):
        main([*DRY, "nothing"])


def test_a_stage_has_what_those_before_it_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def run(command: list[str], seconds: float, log: Path) -> int:
        log.touch()
        given.append(seconds)
        return 0

    monkeypatch.setattr(processes, "run", run)
    assert main([*DRY, "tests", "--output", str(tmp_path)]) == 0
    limits = list(check.planned(["tests"], 1).values())
    assert given == pytest.approx([sum(limits[: i + 1]) for i in range(len(limits))], abs=5)


# -- what goes wrong -------------------------------------------------------------------------------


def _stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, body: str, *words: str
) -> Found:
    """Runs a stage with a function made of `body`, in a process of its own as always."""
    (tmp_path / "planted.py").write_text(
        "import os, sys, time\nfrom benchmarks.gpu import check\n"
        "from benchmarks.gpu.stage import LostDeviceError\nfrom benchmarks.__main__ import main\n"
        f"def stage(stage):\n    {body.replace(chr(10), chr(10) + '    ')}\n"
        f"check.STAGES[{name!r}] = stage\nsys.exit(main(sys.argv[1:]))\n"
    )

    def planted(command: list[str], *rest: object) -> int | None:
        assert command[1:3] == ["-m", "benchmarks"]
        changed = [command[0], str(tmp_path / "planted.py"), *command[3:]]
        return RUN(changed, *rest, {"PYTHONPATH": str(ROOT)})  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "run", planted)
    main([*DRY, name, "--output", str(tmp_path), *words])
    return _read(tmp_path)[name]


def test_a_stage_that_fails_is_told_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.Record(tmp_path, "tests").write(end={"passed": True})
    found = _stage(monkeypatch, tmp_path, "ceilings", "raise RuntimeError('the reason\\nand more')")
    assert (found["passed"], found["notes"]) == (False, ["RuntimeError: the reason"])
    assert _read(tmp_path)["tests"]["passed"]
    assert "- ceilings: FAILED in " in (tmp_path / "gpu-check.md").read_text()
    assert "and more" in (tmp_path / "gpu-check.log").read_text()
    assert len(list(tmp_path.glob("*.log"))) == 1  # a lent machine gives few files back


def test_a_stage_that_is_stopped_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(_: list[str], *rest: object) -> int | None:
        script = (
            "import time; from pathlib import Path; from benchmarks.gpu.record import Record\n"
            f"Record(Path({str(tmp_path)!r}), 'kernels').write(row=dict(a=1)); time.sleep(100)"
        )
        return RUN([sys.executable, "-c", script], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "run", planted)
    monkeypatch.setitem(check.COMMANDS["alive"], "kernels", 3)
    assert main([*DRY, "kernels", "--output", str(tmp_path)]) == 1
    found = _read(tmp_path)["kernels"]
    assert (found["rows"], found["passed"]) == ([{"a": 1}], False)
    assert re.fullmatch(r"stopped after \d+ s", found["notes"][-1])


@pytest.mark.parametrize("end", ["os.abort()", "raise LostDeviceError('illegal access')"])
def test_a_stage_goes_on_behind_what_has_ended_its_process(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "for name in 'abcd':\n    if name in stage.record.read()['tried']: continue\n"
        f"    stage.record.write(trying=name)\n    if name in 'bc': {end}\n"
        "    stage.record.write(row=dict(of=name))\n"
        "return True"
    )
    found = _stage(monkeypatch, tmp_path, "every-kernel", body, "--patience", "3")
    assert [row["of"] for row in found["rows"]] == ["a", "d"]
    assert found["tried"] == list("abcd")
    # One that gets no further is not started for ever.
    found = _stage(monkeypatch, tmp_path, "ceilings", end)
    assert not found["passed"]
    assert re.search(r"its process ended with status -?\d+, see gpu-check.log", found["notes"][-1])


def test_a_runner_that_is_killed_leaves_every_row(tmp_path: Path) -> None:
    """Killed without a signal to catch: rows, and no half of one, are on the disk all the same."""
    command = [sys.executable, "-m", "benchmarks", *DRY, "environment", "every-kernel"]
    command += ["--patience", "5"]
    runner = subprocess.Popen([*command, "--output", str(tmp_path)], cwd=ROOT)
    try:
        end = time.monotonic() + 120
        while not _read(tmp_path).get("every-kernel", {}).get("rows"):
            assert time.monotonic() < end
            assert runner.poll() is None
            time.sleep(0.05)
        os.kill(runner.pid, signal.SIGKILL)
    finally:
        processes._stop(runner.pid)
        runner.wait()
    for line in (tmp_path / record.NAME).read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            json.loads(line)
    found = _read(tmp_path)
    assert found["environment"]["passed"]
    assert record.facts(found)["device"] == "cpu"
    assert found["every-kernel"]["rows"]
    assert not found["every-kernel"]["passed"]
    assert "- environment: passed in" in (tmp_path / "gpu-check.md").read_text()


def test_a_page_that_fails_does_not_stop_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], seconds: float, log: Path) -> int:
        log.touch()
        header = {"schema": SCHEMA, "suite": "gpu-check", "device": "cpu"}
        (tmp_path / RESULTS).write_text(f'{json.dumps(header)}\n{{"measurement": "latency"}}\n')
        return 0

    monkeypatch.setattr(processes, "run", run)
    assert main([*DRY, "ceilings", "ncu", "--output", str(tmp_path)]) == 0
    assert list(_read(tmp_path)) == ["ceilings", "ncu"]
    assert "KeyError" in capsys.readouterr().out
    assert "KeyError" in (tmp_path / "gpu-check.md").read_text()


def test_a_lost_device_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage("a", "cuda", tmp_path, deadline=0)

    def ones(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr("torch.ones", ones)
    with pytest.raises(LostDeviceError, match=r"^CUDA error: an illegal memory access$"):
        stage.check_device()


def test_it_is_a_command_of_its_own() -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu-check", "--help"]
    printed = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    printed = re.sub(r"\s", "", printed)  # lines end at hyphens too
    assert all(word in printed for word in (*check.COMMANDS, *check.STAGES))


def test_the_page_about_it_names_every_stage_and_its_limit() -> None:
    page = (ROOT / "docs" / "internals" / "cuda-kernels.md").read_text()
    for command, limits in check.COMMANDS.items():
        assert f"gpu-check {command}\n" in page
        for name, limit in limits.items():
            (line,) = (
                text for text in page.splitlines() if re.match(rf"\|.*\| .*`{name}`.* \|", text)
            )
            assert re.search(rf"\b{limit:g}\b", line) or name == "build"
