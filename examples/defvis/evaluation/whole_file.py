"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a name to write to; what was written there becomes `path` if all went well.

    The name is in the same folder and has the same ending. A file that could not be completed is
    removed, and an older file at `path` is left as it was.

    Raises:
        OSError: If the file cannot be written; the message names `path`.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets errors of writing name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def write_results(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes entries of a results.json, one after the other: they need not be in memory at once.

    Raises:
        OSError: If the file cannot be written; the message names it.
    """
    with whole_file(path) as partial, partial.open("w", encoding="ascii") as file:
        file.write("[")
        for number, entry in enumerate(entries):
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]")
