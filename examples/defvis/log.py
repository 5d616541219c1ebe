"""The log of a run: one JSON object per line, and the picture drawn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Reads all lines. Where a resumed run repeats a step, the later line counts."""
    rows: dict[tuple[str, str, int], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["kind"], row["stage"], row["step"])
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


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
    right.legend()
    figure.savefig(path, dpi=110)
