"""The curves of a run, drawn from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from defvis.training.log import Row


def label(name: str, number: int) -> str:
    """A name for a legend, or its number where the font cannot draw it."""
    font = get_font(findfont(FontProperties()))
    if any(not font.get_char_index(ord(letter)) for letter in name):
        return f"number {number}"
    # A dollar would begin a formula, and an underscore hide the entry.
    return ("\u200a" * name.startswith("_")) + name.replace("$", r"\$")


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draws losses and validation figures over the minutes of training.

    Args:
        rows: Lines of the log, of kind "train" (with losses) and "val" (with figures).
        path: PNG to write.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_losses(left, [row for row in rows if row["kind"] == "train"])
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
        _legend(right)
    figure.savefig(path, dpi=110)


def _draw_losses(axes: Axes, rows: Sequence[Row]) -> None:
    """A colour for each loss; the background, and dashes, tell the first stage from the second."""
    axes.set(
        xlabel="minutes of training", ylabel="loss, unweighted", yscale="log", title="Training"
    )
    for stage, style in (("backbone", "--"), ("joint", "-")):
        steps = [row for row in rows if row["stage"] == stage]
        for index, name in enumerate(("class", "giou", "mask", "dice", "dense", "identity")):
            points = [(row["minutes"], row[name]) for row in steps if name in row]
            if points:
                label = f"{name} ({stage} stage)"
                axes.plot(*zip(*points, strict=True), style, color=f"C{index}", label=label)
        if steps and stage == "backbone":
            end = steps[-1]["minutes"]
            axes.axvspan(0, end, color="0.92", zorder=0, label="backbone stage")
    if axes.lines:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Beside the axes, where no curve is."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
