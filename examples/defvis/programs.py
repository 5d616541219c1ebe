"""What the programs share: how they end, and a look at where they will write."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def one_line_errors(program: str, *expected: type[Exception]) -> Iterator[None]:
    """Ends the program with one sentence and exit status 1 where it would end in a traceback.

    Args:
        program: Name to begin the sentence with.
        expected: Errors with a message for the user, besides `OSError` and `ValueError`.
    """
    caught: tuple[type[Exception], ...] = (OSError, ValueError, *expected)
    try:
        yield
    except caught as error:
        message = str(error).strip()
        if "Traceback" in message:  # A loader's worker puts its own before the message.
            message = message.splitlines()[-1]
        sys.exit(f"{program}: {message}")


def prepare_folder(folder: Path) -> None:
    """Creates a folder and tries to write into it, before work is done for it.

    Raises:
        OSError: If that is not possible; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a folder for as long as this one lives.

    The kernel releases the lock when the process ends, however it ends, so a killed run does not
    keep its folder. The file `.lock` stays. Where the file system has no locks (some network
    folders) or the platform has no `fcntl`, a warning says that nothing keeps a second run out.

    Args:
        folder: Created if it is missing. Of several processes of one run, one locks it.

    Raises:
        FileExistsError: If another live run writes to the folder.
        OSError: If the folder cannot be written to; the message names it.
    """
    prepare_folder(folder)
    with (folder / ".lock").open("ab") as file:
        try:
            _lock(file.fileno())
        except BlockingIOError as error:
            raise FileExistsError(
                f"another run is writing to {folder}; wait until it ends or write elsewhere"
            ) from error
        except OSError as error:
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): "
                "take care that no other run writes to it",
                file=sys.stderr,
            )
        yield


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
