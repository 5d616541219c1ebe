"""`python -m benchmarks all`: which commands it runs, and that it says when one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__ as program
from benchmarks.__main__ import main
from benchmarks.commands import suite

MEASURING = ["operator", "layers", "complexity", "model"]


@pytest.mark.parametrize("quick", [False, True])
def test_all_commands_run(
    quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, int("layers" in command))

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["all", "--threads", "1", "--output", str(tmp_path), *["--quick"] * quick]) == 1
    assert capsys.readouterr().err == "failed: layers\n"
    assert [command[:4] for command in commands] == [
        [sys.executable, "-m", "benchmarks", name] for name in MEASURING
    ]
    # Every one of them is understood, and writes where its options say.
    for name, command in zip(MEASURING, commands, strict=True):
        seen = []
        module = program._COMMANDS[name]
        monkeypatch.setattr(module, "run", lambda options, seen=seen: seen.append(options) or 0)
        assert main(command[3:]) == 0
        (options,) = seen
        assert (options.quick, options.threads) == (quick, 1)
        assert options.output == tmp_path / f"{name}.jsonl"
        # Dense attention on large volumes would take minutes of the whole.
        assert name == "operator" or options.slow_rounds == 1


def test_every_command_that_records_is_part_of_it() -> None:
    recording = {
        name
        for name, module in program._COMMANDS.items()
        if "recording.add_arguments(parser" in Path(str(module.__file__)).read_text()
    }
    assert recording == set(suite._SECONDS)
