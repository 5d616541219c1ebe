"""Pictures of results: growth with the volume, and what is left in the CPU kernels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.costs.cpu_parts import ALL_PARTS
from benchmarks.measure.rows import MODES, Row
from benchmarks.report.targets import machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2  # of panels: more of them are small on a page
_DPI = 100
_LIMITS = ("same rows", "L1", "L2")  # of the bandwidth that a picture compares with
_SHADES = ("0.2", "0.5", "0.75")  # of these


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Draws time against the number of cells, deformable and dense, and where they meet.

    Args:
        rows: Of `python -m benchmarks complexity`, others are passed over.
        path: PNG to write.
    """
    from matplotlib.figure import Figure  # not every machine has it

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
    _save(figure, path, colors=32)


def draw_parts(rows: Sequence[Row], path: Path) -> None:
    """Draws what the forward reaches of the bandwidth of caches, and time by part of the kernels.

    Args:
        rows: Of `python -m benchmarks parts`, others are passed over; of several machines the last
            one's are drawn, and of two about the same the last.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    chosen = [row for row in rows if row["suite"] == "parts"]
    on = machine(chosen[-1])
    chosen = [row for row in chosen if machine(row) == on]
    found = {(row["measurement"], row["label"], row["mode"]): row for row in chosen}
    labels = list(dict.fromkeys(row["label"] for row in chosen))
    figure = Figure(figsize=(14, 1.5 + 0.7 * len(labels)), layout="constrained")
    figure.suptitle(f"{on}, {' and '.join(dict.fromkeys(map(_threads, chosen)))}")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    for i, label in enumerate(labels):
        if row := found.get(("bandwidth", label, "forward")):
            _draw_reached(left, i, row)
        for below, mode in ((-0.2, "forward"), (0.2, "backward")):
            if row := found.get(("parts", label, mode)):
                _draw_stack(right, i + below, row)
    left.set(title="forward: rows read per second, of what a loop reaches", xlabel="%")
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    right.set(title="processor time: above forward, below backward", xlabel="%", xlim=(0, 100))
    for axes, side in ((left, "left"), (right, "right")):
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        drawn, names = axes.get_legend_handles_labels()
        handles = dict(zip(names, drawn, strict=True))
        order = [name for name in (*_LIMITS, *ALL_PARTS) if name in handles]
        shown = [handles[name] for name in order]
        figure.legend(shown, order, fontsize=8, ncols=6, loc=f"outside lower {side}")
    _save(figure, path, colors=128)


def _threads(row: Row) -> str:
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}"


def _draw_reached(axes: Axes, place: float, row: Row) -> None:
    """A bar for each limit that is known, with its share in numbers."""
    for i, limit in enumerate(_LIMITS):
        if row["ceiling"].get(limit):
            reached = 100 * row["bytes_per_second"]["median"] / row["ceiling"][limit]
            place_of_bar = place + 0.25 * (i - 1)
            axes.barh(place_of_bar, reached, height=0.22, color=_SHADES[i], label=limit)
            axes.text(reached, place_of_bar, f" {reached:.0f}", va="center", fontsize=7)


def _draw_stack(axes: Axes, place: float, row: Row) -> None:
    """The parts one after another, and behind them the time of a call."""
    from matplotlib import colormaps

    start = 0.0
    for i, part in enumerate(ALL_PARTS):
        share = 100 * row["parts"].get(part, 0)
        if share:
            color = colormaps["tab20"](i)
            axes.barh(place, share, left=start, height=0.36, color=color, label=part)
        if share >= 4:
            axes.text(
                start + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=7
            )
        start += share
    shown = f" {1000 * row['seconds']['median']:.3g} ms"
    axes.text(100, place, shown, va="center", fontsize=7)


def _save(figure: Figure, path: Path, *, colors: int) -> None:
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    # A quarter of the bytes: lines, bars and letters have few colours.
    Image.open(drawn).convert("RGB").quantize(colors).save(path, "PNG", optimize=True)
