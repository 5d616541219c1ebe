"""What the programs share: how they end, and a look at where they will write."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
