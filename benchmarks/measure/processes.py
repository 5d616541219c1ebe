"""Programs that are stopped together with everything that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]


def run(
    command: Sequence[str],
    seconds: float | None,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Runs a program from the root of the checkout, in a process group of its own.

    When it ends, for any reason, the rest of its group is killed: it would share the processor and
    the GPU with what is measured next.

    Args:
        command: Its words.
        seconds: After which it is stopped; None for never.
        log: Where its output is appended to, as it comes.
        environment: Further variables.

    Returns:
        Its exit status; None if it was stopped.
    """
    with log.open("ab") as output:
        # A group and no session: what ends this session ends the program too.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process.pid)
            process.wait()


@contextlib.contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Meanwhile SIGTERM leaves through `finally`, which stops the program that is running."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(pid: int) -> None:
    """Kills the group of a process, and the groups that its descendants have made."""
    groups = {pid}
    for each in _descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(each))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # After the name, which may hold anything: state, parent.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found: list[int] = []
    left = [pid]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found
