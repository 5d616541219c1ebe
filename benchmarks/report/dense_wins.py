"""Where dense attention is the better choice, in words made from rows."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.rows import MODES, Row

TITLE = "Where dense attention wins"


def paragraph(rows: Sequence[Row]) -> str:
    """Volumes on which a dense kind took less time, and problems in which it took less memory.

    Args:
        rows: Of any command; without rows of `python -m benchmarks complexity` there is nothing to
            say.

    Returns:
        Markdown, or nothing.
    """
    growing = [row for row in rows if row["measurement"] == "complexity" and row["axis"] == "T"]
    if not growing:
        return ""
    subjects = dict.fromkeys(row["subject"] for row in growing)
    lines = [
        f"- {subject}, {mode}: {_times(own)}"
        for subject in subjects
        for mode in MODES
        if (own := [row for row in growing if (row["subject"], row["mode"]) == (subject, mode)])
    ]
    smaller = _less_memory(rows)
    if smaller:
        lines.append(f"- Less peak memory: {'; '.join(smaller)}.")
    intro = "On these volumes the faster kind of dense attention takes less time than deformable:"
    return "\n".join([intro, "", *lines])


def _times(rows: Sequence[Row]) -> str:
    """Of one subject and mode: every size at which dense attention was faster, and by how much."""
    gains: dict[int, tuple[float, str]] = {}
    for row in rows:
        if _is_dense(row):
            gain = (row["ratio"]["median"], row["variant"])
            gains[row["cells"]] = min(gain, gains.get(row["cells"], gain))
    lost = [
        f"{cells} cells ({gain:.2f}x the time, {kind})"
        for cells, (gain, kind) in sorted(gains.items())
        if gain < 1
    ]
    return f"{', '.join(lost) or f'none from {min(gains)} cells on'}."


def _less_memory(rows: Sequence[Row]) -> list[str]:
    found = {}  # of rows from two machines about the same the last counts
    for row in rows:
        is_one = row["measurement"] in ("memory", "memory by size") and _is_dense(row)
        if is_one and row["ratio"]["median"] is not None and row["ratio"]["median"] < 1:
            about = f"{row['label']}, {row['mode']}"
            found[about] = f"{about} ({row['ratio']['median']:.2f}x)"
    return list(found.values())


def _is_dense(row: Row) -> bool:
    return bool(row["variant"].startswith("dense"))
