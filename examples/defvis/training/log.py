"""The log of a run: one JSON object per line, and the same for TensorBoard."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Log:
    """Writes log.jsonl and, where TensorBoard is installed, the same numbers for it.

    Args:
        out: Folder of the run.
        goes_on: True if a resumed run continues the file; False deletes it.
    """

    def __init__(self, out: Path, goes_on: bool) -> None:
        self._path = out / "log.jsonl"
        old = list((out / "tensorboard").glob("events.out.tfevents.*"))
        self._board = _board(out / "tensorboard")
        if not goes_on:  # Of a run that ended before its first checkpoint.
            for path in (self._path, *old):
                path.unlink(missing_ok=True)
        elif self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")  # Ends the line that a killed run left half written.

    def append(self, row: Row) -> None:
        """Adds a line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # Of a full disk; it does not say where.
            raise OSError(f"cannot write {self._path}: {error.strerror}") from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    place = f"{row['kind']}-{row['stage']}/{name.replace(' ', '_')}"
                    self._board.add_scalar(place, value, row["step"])
            self._board.flush()

    def read(self) -> list[Row]:
        """Reads all lines."""
        return read(self._path)


def read(path: Path) -> list[Row]:
    """Reads all lines. Where a resumed run repeats a step, the later line counts.

    A line that a killed run left half written is left out, and so is any other that is no row.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            key = (row["kind"], row["stage"], row["step"])
            hash(key)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def _board(folder: Path) -> Any:
    """TensorBoard's writer, None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
