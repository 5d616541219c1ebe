"""Compilers' output, kept in `build/` from one run of the tests to the next."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class CompileError(RuntimeError):
    """The compiler refused a source; its messages are the text."""


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Only one process at a time is in this context; `path` is that of the file to be made."""
    import fcntl  # which Windows has not, where tests of wheels import this file

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(command: Sequence[str], output: Path) -> None:
    """Makes `output` unless it is there; one process at a time, and it appears only once whole.

    Args:
        command: Run in the checkout, with "-o" and a path added.
        output: Its path must change with everything that goes into it.

    Raises:
        CompileError: The command failed.
    """
    with alone(output):
        if output.exists():
            return
        partial = output.with_name(f"{output.name}.partial")
        done = subprocess.run(
            [*command, "-o", str(partial)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CompileError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        os.replace(partial, output)
