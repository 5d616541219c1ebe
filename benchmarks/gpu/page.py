"""What `gpu-check` has found as a page of Markdown; what matters most comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.gpu import tune
from benchmarks.gpu.stage import Found
from benchmarks.measure.rows import Row
from benchmarks.report import gpu_tables

_STATES = {True: "passed", False: "FAILED"}
_NOTES = 8  # of a stage; the others are in the file of findings
_FAILED = 25  # tests that are named
_LONGEST = 200  # letters of a line


def page(stages: Mapping[str, Found], rows: Sequence[Row]) -> str:
    """The whole report, of what all stages have found and of the rows of results."""
    facts = (stages["environment"]["rows"] if "environment" in stages else []) or [{}]
    parts = [
        f"# GPU check on {facts[0].get('device', 'an unnamed device')}",
        "\n".join(line for name, found in stages.items() for line in state(name, found)),
        "\n".join(list(_failed_tests(stages))[:_FAILED]),
        *(tune.winners(rows), gpu_tables.section(rows), tune.shares(rows)),
        "\n".join(f"- {key}: {fact}" for key, fact in facts[0].items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def state(name: str, found: Found) -> list[str]:
    """A line for a stage, and one for each of its first notes and for each library."""
    ended = "has not ended" if found["seconds"] is None else f"in {found['seconds']} s"
    outcomes = [row["outcome"] for row in found["rows"] if "outcome" in row]
    counts = [f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)]
    if not counts and (found["done"] or found["rows"]):
        counts = [f"{len(found['done'] or found['rows'])} done"]
    notes = found["notes"][:_NOTES]
    if more := len(found["notes"]) - len(notes):
        notes.append(f"and {more} more notes")
    notes += [
        f"{row['library']}: {row['reason'] or 'timed'}" for row in found["rows"] if "library" in row
    ]
    first = f"- {name}: " + ", ".join([f"{_STATES[found['passed']]} {ended}", *counts])
    return [first, *(f"    - {note[:_LONGEST]}" for note in notes)]


def _failed_tests(stages: Mapping[str, Found]) -> Iterator[str]:
    for found in stages.values():
        for row in found["rows"]:
            if row.get("outcome") == "failed":
                yield f"{row['test']}: {row['error'].strip().splitlines()[-1]}"[:_LONGEST]
