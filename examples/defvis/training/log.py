"""The log of a run: one JSON object per line, and the picture drawn from it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = dict[str, Any]


class Log:
    """Writes log.jsonl and, where TensorBoard is installed, the same numbers for it.

    Args:
        out: Folder of the run.
        goes_on: True if a resumed run adds to what is there; False starts anew.
    """

    def __init__(self, out: Path, goes_on: bool) -> None:
        self._path = out / "log.jsonl"
        self._board = _board(out / "tensorboard")
        if not goes_on:
            self._path.unlink(missing_ok=True)  # Of a run that ended before its first checkpoint.
        elif self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")  # Ends the line that a killed run left half written.

    def append(self, row: Row) -> None:
        """Adds a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
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

    A line that a killed run left half written is left out.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = (row["kind"], row["stage"], row["step"])
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def _board(folder: Path) -> Any:
    """TensorBoard's writer, None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draws losses and validation figures over the minutes of training.

    Args:
        rows: Lines of kind "train" (with losses) and "val" (with figures), see `train`.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage, style in (("backbone", "--"), ("joint", "-")):
        steps = [row for row in rows if row["kind"] == "train" and row["stage"] == stage]
        for index, name in enumerate(("class", "giou", "mask", "dice", "dense")):
            points = [(row["minutes"], row[name]) for row in steps if name in row]
            if points:
                label = f"{name} ({stage} stage)"
                left.plot(*zip(*points, strict=True), style, color=f"C{index}", label=label)
    left.set(
        xlabel="minutes of training", ylabel="loss, unweighted", yscale="log", title="Training"
    )
    left.legend(fontsize=8, loc="upper right")
    validations = [row for row in rows if row["kind"] == "val"]
    largest = max((row["videos"] for row in validations), default=0)
    for index, name in enumerate(("AP", "AP50", "AP75")):
        for whole, style in ((False, "o--"), (True, "*")):
            points = [
                (row["minutes"], row[name])
                for row in validations
                if (row["videos"] == largest) == whole
            ]
            if points:
                label = f"{name}, {largest} videos" if whole else f"{name}, subset"
                right.plot(
                    *zip(*points, strict=True),
                    style,
                    color=f"C{index}",
                    markersize=12 if whole else 5,
                    label=label,
                )
    right.set(xlabel="minutes of training", ylim=(0, 1), title="Validation (video AP)")
    right.grid(alpha=0.3)
    if right.lines:
        right.legend()
    figure.savefig(path, dpi=110)
