"""What `gpu-check` has found as a page of Markdown, and as the end of its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu import tune
from benchmarks.gpu.record import Found, facts
from benchmarks.measure.rows import Row
from benchmarks.report import gpu_tables
from benchmarks.report.targets import GPU_TARGETS, check, check_table

_STATES = {True: "passed", False: "FAILED"}
_FAILED = 25  # tests that are named
_LONGEST = 200  # letters of a note


def page(stages: Mapping[str, Found], rows: Sequence[Row]) -> str:
    """The whole report, of what `record.read` has found and of the rows of results."""
    about = facts(stages)
    parts = [f"# GPU check on {about.get('device', 'an unnamed device')}"]
    parts.append("\n".join(line for name, found in stages.items() for line in state(name, found)))
    parts.append("\n".join(f"- {key}: {fact}" for key, fact in about.items()))
    parts += [gpu_tables.section(rows), tune.winners(rows), tune.times(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def summary(stages: Mapping[str, Found], rows: Sequence[Row]) -> str:
    """What matters most of it, for a terminal that shows little: failures, winners, targets."""
    parts = ["\n".join(_failed_tests(stages)), tune.winners(rows)]
    if any(row["measurement"] == "latency" for row in rows):
        parts.append(check_table(check(rows, GPU_TARGETS)))
    parts.append(gpu_tables.kernels(rows))
    return "\n\n".join(filter(None, parts))


def state(name: str, found: Found, most: int | None = None) -> list[str]:
    """A line for a stage, and one for each of its first notes."""
    ended = "has not ended" if found["seconds"] is None else f"in {found['seconds']} s"
    outcomes = [row["outcome"] for row in found["rows"] if "outcome" in row]
    counts = [f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)]
    if not counts and (found["done"] or found["rows"]):
        counts = [f"{len(found['done'] or found['rows'])} done"]
    lines = [f"- {name}: " + ", ".join([f"{_STATES[found['passed']]} {ended}", *counts])]
    notes = found["notes"][:most]
    lines += [f"    - {note[:_LONGEST]}" for note in notes]
    if more := len(found["notes"]) - len(notes):
        lines.append(f"    - and {more} more notes")
    lines += [
        f"    - {row['library']}: {row['reason'] or 'timed'}"
        for row in found["rows"]
        if "library" in row
    ]
    return lines


def _failed_tests(stages: Mapping[str, Found]) -> list[str]:
    failed = [
        f"{row['test']}: {row['error'].strip().splitlines()[-1]}"
        for found in stages.values()
        for row in found["rows"]
        if row.get("outcome") == "failed"
    ]
    return [line[:_LONGEST] for line in failed[:_FAILED]]
