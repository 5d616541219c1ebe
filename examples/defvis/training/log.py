"""The log of a run: one JSON object per line, and the same for TensorBoard."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from defvis.training.distributed import World
from defvis.training.stages import Stage

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


class RunningMeans:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self._steps = 0
        self._loading = self._computing = 0.0
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], loading: float, computing: float) -> None:
        """Adds a step: its losses, and the seconds of loading and computing."""
        self._steps += 1
        self._loading += loading
        self._computing += computing
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss

    def figures(self, stage: Stage, world: World) -> dict[str, float]:
        """Means of all processes' losses, and how fast they are together."""
        own = {name: float(total) / self._steps for name, total in self._sums.items()}
        everyone = world.gather(own)
        seconds = (self._loading + self._computing) / self._steps
        return {
            "lr": stage.learning_rate,
            **{name: sum(one[name] for one in everyone) / len(everyone) for name in own},
            "seconds per step": seconds,
            "waiting for data": self._loading / self._steps / seconds,
            f"{stage.unit} per second": stage.batch_size * world.size / seconds,
        }
