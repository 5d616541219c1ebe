"""`python -m benchmarks report`: writes the tables of recorded rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure.recording import load_rows
from benchmarks.report import tables
from benchmarks.report.plots import draw_growth, draw_parts
from benchmarks.report.targets import machine

BEGIN = "<!-- results: begin, written by python -m benchmarks report -->"
END = "<!-- results: end -->"
_DOCS = Path("benchmarks/results/RESULTS.md")
_PICTURE = "complexity.png"  # beside the page
_PARTS_PICTURE = Path("docs/internals/cpu-roofline.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("results", nargs="+", type=Path, help="JSON-lines files of real runs")
    parser.add_argument(
        "--docs", type=Path, default=_DOCS, help=f"the page to update; by default {_DOCS}"
    )
    parser.add_argument(
        "--parts-picture",
        type=Path,
        default=_PARTS_PICTURE,
        help=f"what rows of `parts` are drawn to; by default {_PARTS_PICTURE}",
    )


def run(options: argparse.Namespace) -> int:
    """Replaces the results section of the page by tables of the given rows."""
    rows = load_rows(options.results)
    before, _, rest = options.docs.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{options.docs} has no lines {BEGIN} and {END}")
    shown = tables.tables(rows)
    drawn = [row for row in rows if row["measurement"] == "complexity"]
    if drawn:
        draw_growth(rows, options.docs.with_name(_PICTURE))
        machines = " and ".join(dict.fromkeys(map(machine, drawn)))
        shown = f"![Time against the number of cells, on {machines}]({_PICTURE})\n\n{shown}"
    parts = [row for row in rows if row["suite"] == "parts"]
    if parts:
        draw_parts(parts, options.parts_picture)
    options.docs.write_text(f"{before}{BEGIN}\n\n{shown}\n{end}{after}")
    return 0
