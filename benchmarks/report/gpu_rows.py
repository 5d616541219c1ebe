"""`python -m benchmarks gpu-rows`: what `gpu-check` has measured as rows of results.

`python -m benchmarks report` shows them beside those of the CPU, in a section of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu import gpu_plan, gpu_record
from benchmarks.measure.recording import SCHEMA, without_rounds
from benchmarks.report import gpu_page
from benchmarks.report.bars import Row
from benchmarks.report.markdown import table

SUITE = "gpu-check"
_RESULTS = Path("benchmarks/results/gpu.jsonl")
_ORIGIN = (
    *("device", "capability", "driver, clock, power", "nvcc", "torch_cuda", "torch", "python"),
    *("system", "stdeform", "commit", "command", "time"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument(
        "check", type=Path, nargs="+", help=f"a {gpu_record.NAME}, one of each command of gpu-check"
    )
    parser.add_argument(
        "--output", type=Path, default=_RESULTS, help=f"replaced; by default {_RESULTS}"
    )


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Writes the rows as JSON lines.

    Raises:
        SystemExit: They would not say what was measured where.
    """
    made: list[Row] = []  # a header and its rows for each
    for path in options.check:
        stages = gpu_record.read(path)
        if complaint := _complaint(stages):
            raise SystemExit(f"{path}: {complaint}")
        made += [_header(stages), *_figures(stages)]
        if wrong := sum("wrong" in row for row in gpu_page.timed_rows(stages)):
            print(f"{path}: {wrong} rows are left out, their answers were wrong")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(json.dumps(without_rounds(row)) + "\n" for row in made))
    print(f"{len(made) - len(options.check)} rows in {options.output}")
    return 0


def rows(stages: Mapping[str, gpu_record.Stage]) -> Iterator[Row]:
    """Every figure of a check, each with where and how it was measured.

    Args:
        stages: What `gpu_record.read` has found, with the environment.
    """
    return ({**_header(stages), **row} for row in _figures(stages))


def _header(stages: Mapping[str, gpu_record.Stage]) -> Row:
    return {"schema": SCHEMA, "suite": SUITE, **gpu_record.facts(stages)}


def _figures(stages: Mapping[str, gpu_record.Stage]) -> Iterator[Row]:
    timed = [("device time", row) for row in gpu_page.timed_rows(stages) if "wrong" not in row]
    timed += [("device time of peers", row) for row in gpu_page.peer_rows(stages)]
    for measurement, row in timed:
        told = {key: figure for key, figure in row.items() if key != "key"}
        yield {"measurement": measurement, "subject": row["ratio"]["to"], **told}
    for name, rate in gpu_page.ceiling_rates(stages).items():
        yield {"measurement": "device ceiling", "label": name, "per_second": rate}


def sections(rows: Sequence[Row]) -> str:
    """Markdown: for every check that rows are from what its page shows, and where it ran."""
    checks: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        checks.setdefault(tuple(str(row.get(key)) for key in _ORIGIN), []).append(row)
    return "\n\n".join(_section(origin, found) for origin, found in checks.items())


def _section(origin: Sequence[str], rows: Sequence[Row]) -> str:
    def of(measurement: str) -> list[Row]:
        return [row for row in rows if row["measurement"] == measurement]

    timed, beside = of("device time"), of("device time of peers")
    rates = {row["label"]: row["per_second"] for row in of("device ceiling")}
    parts = [
        f"### On {origin[0]}",
        gpu_plan.verdicts([*timed, *beside], on_gpu=True),
        gpu_page.times(timed),
        *gpu_page.shares(timed, rates),
        gpu_page.peers(beside),
        table(["", ""], zip(_ORIGIN, origin, strict=True)),
    ]
    return "\n\n".join(filter(None, parts))


def _complaint(stages: Mapping[str, gpu_record.Stage]) -> str:
    """Why a check makes no rows; "" if it does."""
    facts = gpu_record.facts(stages)
    if facts.get("device", "cpu") == "cpu":
        return "it has not run on a GPU"
    commit = facts.get("commit") or ""
    if not commit or commit.endswith("-dirty"):
        return (
            f"it ran on the commit {commit or '?'}; run it on a clean checkout, or tell the commit"
            " in STDEFORM_COMMIT"
        )
    if not list(rows(stages)):
        return "nothing was timed"
    return ""
