"""Programs that are stopped take all that they have started with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import processes

# What a program leaves behind: a child that writes a file later, as its own group or not.
CHILD = """
import os, subprocess, sys, time
own, late, then = sys.argv[1:]
script = f"import time; time.sleep(3); open({late!r}, 'w')"
subprocess.Popen([sys.executable, "-c", script], start_new_session=own == "own")
print("started", flush=True)
time.sleep(float(then))
"""


def _wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("own", ["own", "same"])
def test_a_program_that_takes_too_long_ends_with_its_children(own: str, tmp_path: Path) -> None:
    late, log = tmp_path / "late", tmp_path / "log"
    command = [sys.executable, "-c", CHILD, own, str(late), "60"]
    start = time.monotonic()
    assert processes.run(command, 1.5, log) is None
    assert time.monotonic() - start < 3
    assert log.read_text() == "started\n"
    time.sleep(3)
    assert not late.exists()


def test_a_program_that_ends_leaves_nothing_running(tmp_path: Path) -> None:
    late = tmp_path / "late"
    command = [sys.executable, "-c", CHILD, "same", str(late), "0"]
    assert processes.run(command, 60, tmp_path / "log") == 0
    time.sleep(3.5)
    assert not late.exists()


def test_status_output_and_variables(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    script = "import os, sys; print(os.environ['WHAT'], file=sys.stderr); sys.exit(7)"
    assert processes.run([sys.executable, "-c", script], 60, log, {"WHAT": "told"}) == 7
    assert log.read_text() == "before\ntold\n"


def test_who_is_asked_to_end_stops_what_is_running(tmp_path: Path) -> None:
    late, log = tmp_path / "late", tmp_path / "log"
    command = [sys.executable, "-c", CHILD, "same", str(late), "60"]
    script = (
        "import sys; from pathlib import Path; from benchmarks.measure import processes\n"
        f"with processes.stopping_cleanly(): processes.run({command!r}, 60, Path({str(log)!r}))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=processes.ROOT)
    _wait_for(lambda: log.exists() and log.read_text())
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 128 + signal.SIGTERM
    time.sleep(3.5)
    assert not late.exists()


def test_it_ends_with_the_session_that_it_was_started_in(tmp_path: Path) -> None:
    script = "import os; print(os.getsid(0), os.getpgrp(), os.getpid())"
    processes.run([sys.executable, "-c", script], 60, tmp_path / "log")
    session, group, process = map(int, (tmp_path / "log").read_text().split())
    assert session == os.getsid(0)
    assert group == process
