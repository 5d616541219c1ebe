"""Rows of results as lines, tables and verdicts; `python -m benchmarks report` updates the docs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .bars import Row, judge
from .variants import MODES

BEGIN = "<!-- results: begin, written by python -m benchmarks report -->"
END = "<!-- results: end -->"
_DOCS = Path("docs/benchmarks.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("results", nargs="+", type=Path, help="JSON-lines files of real runs")
    parser.add_argument(
        "--docs", type=Path, default=_DOCS, help=f"the page to update; by default {_DOCS}"
    )


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Replaces the results section of the page by tables of the given rows."""
    rows = [json.loads(text) for path in options.results for text in path.read_text().splitlines()]
    before, _, rest = options.docs.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{options.docs} has no lines {BEGIN} and {END}")
    options.docs.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n{end}{after}")
    return 0


def line(row: Row) -> str:
    """One row for the terminal, while the run goes on."""
    figures = "  ".join(_cells(row))
    if "rounds" in row:
        figures += f"  best {_time(min(row['rounds']))} of {len(row['rounds'])}"
    threads = f"{row['threads']} threads" if row["threads"] > 1 else "1 thread"
    return f"   {row['measurement']:10} {row['variant']:18} {row['mode']:17} {threads:10} {figures}"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: the verdicts, one table per measurement, and where it was measured."""
    parts = [_verdicts(rows)]
    for measurement, (title, headings) in _TABLES.items():
        chosen = [row for row in rows if row["measurement"] == measurement]
        if chosen:
            parts.append(f"### {title}\n\n{_measured(chosen, headings)}")
    parts.append(_origin(rows))
    return "\n\n".join(parts) + "\n"


_TABLES = {
    "latency": ("Latency", ["time [quartiles]", "times the first"]),
    "memory": ("Peak extra memory", ["peak", "times the first"]),
    "bandwidth": (
        "Gather bandwidth",
        ["achieved", "reading the same rows", "L1", "L2", "L3"],
    ),
    "scaling": ("Thread scaling", ["time [quartiles]", "times all threads"]),
    "growth": ("Growth with T * H * W", ["time [quartiles]", "times the smaller"]),
    "overhead": ("Host overhead per call", ["time [quartiles]", "times the first"]),
}


def _measured(rows: Sequence[Row], headings: Sequence[str]) -> str:
    """One line per workload, variant and thread count; its modes side by side."""
    lines: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        key = (row["label"], row["variant"], str(row["threads"]))
        lines.setdefault(key, {})[row["mode"]] = _cells(row)
    modes = [mode for mode in MODES if any(mode in cells for cells in lines.values())]
    absent = ["-"] * len(headings)
    body = [
        [*key, *(cell for mode in modes for cell in cells.get(mode, absent))]
        for key, cells in lines.items()
    ]
    heads = [f"{mode}: {heading}" for mode in modes for heading in headings]
    return _table(["workload", "variant", "threads", *heads], body)


def _cells(row: Row) -> list[str]:
    if row["measurement"] == "bandwidth":
        achieved = row["bytes_per_second"]["median"]
        limits = [row["ceiling"][name] for name in ("same rows", "L1", "L2", "L3")]
        return [f"{achieved / 1e9:.1f} GB/s", *(_share(achieved, limit) for limit in limits)]
    ratio = row["ratio"]["median"]
    times = "-" if ratio is None else f"{ratio:.2f}x"
    if row["measurement"] == "memory":
        return [f"{row['extra_bytes'] / 2**20:.1f} MiB", times]
    median, q1, q3 = (_time(row["seconds"][name]) for name in ("median", "q1", "q3"))
    return [f"{median} [{q1}, {q3}]", times]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _share(achieved: float, limit: float | None) -> str:
    return "-" if limit is None else f"{limit / 1e9:.0f} GB/s ({achieved / limit:.0%} reached)"


def _verdicts(rows: Sequence[Row]) -> str:
    body = []
    for verdict in judge(rows):
        bar = verdict.bar
        scale = 1e6 if bar.figure == "seconds" else 1
        measured = "-" if verdict.value is None else f"{verdict.value * scale:.3g}"
        body.append([bar.label, bar.says, bar.mode, bar.limit, measured, verdict.word])
    heads = ["workload", "promise", "mode", "bar", "measured", "verdict"]
    return f"### Bars\n\n{_table(heads, body)}"


def _origin(rows: Sequence[Row]) -> str:
    fields = ("cpu", "cores", "simd", "system", "python", "torch", "stdeform", "commit", "command")
    distinct = dict.fromkeys(tuple(row[field] for field in fields) for row in rows)
    times = sorted(row["time"] for row in rows)
    body = [
        [field, str(value)]
        for origin in distinct
        for field, value in zip(fields, origin, strict=True)
    ]
    body.append(["started", " to ".join(dict.fromkeys((times[0], times[-1])))])
    loads = dict.fromkeys(str(row["load_average_at_start"]) for row in rows)
    body.append(["load average at start", ", ".join(loads)])
    return f"### Where\n\n{_table(['', ''], body)}"


def _table(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    cells = [list(headings), *map(list, body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
