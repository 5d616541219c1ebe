"""Pictures of results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.rows import MODES, Row

_COLUMNS = 2  # of panels: more of them are small on a page
_DPI, _COLORS = 100, 32


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Draws time against the number of cells, deformable and dense, and where they meet.

    Args:
        rows: Of `python -m benchmarks complexity`, others are passed over.
        path: PNG to write.
    """
    # Not every command draws, and not every machine has it.
    from matplotlib.figure import Figure
    from PIL import Image

    chosen = [row for row in rows if row["measurement"] == "complexity"]
    subjects = list(dict.fromkeys(row["subject"] for row in chosen))
    kinds = list(dict.fromkeys(row["variant"] for row in chosen))
    lines = -(-len(subjects) // _COLUMNS)
    figure = Figure(figsize=(5.5 * _COLUMNS, 4 * lines), layout="constrained")
    for place, subject in enumerate(subjects, start=1):
        axes = figure.add_subplot(lines, _COLUMNS, place)
        for mode, style in zip(MODES, ("--", "-"), strict=True):
            for color, kind in enumerate(kinds):
                points = [
                    (row["cells"], 1000 * row["seconds"]["median"])
                    for row in chosen
                    if (row["subject"], row["variant"], row["mode"]) == (subject, kind, mode)
                ]
                if not points:
                    continue
                axes.plot(
                    *zip(*points, strict=True), f"o{style}", color=f"C{color}", markersize=3,
                    label=f"{kind}, {mode}",
                )  # fmt: skip
        meetings = [row for row in rows if row["measurement"] == "crossover"]
        for row in meetings:
            # What is cheaper everywhere meets nowhere.
            if row["subject"] == subject and row["cells"] not in (None, row["smallest"]):
                style = "--" if row["mode"] == MODES[0] else "-"
                meeting = f"C{kinds.index(row['variant'].removeprefix('than '))}"
                axes.axvline(row["cells"], color=meeting, alpha=0.5, linestyle=style, linewidth=1)
        axes.set(xscale="log", yscale="log", title=subject, xlabel="cells T * H * W", ylabel="ms")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    # A quarter of the bytes: lines and letters have few colours.
    Image.open(drawn).convert("RGB").quantize(_COLORS).save(path, "PNG", optimize=True)
