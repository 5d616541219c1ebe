"""What `gpu-check` has found as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.costs import gpu_roofline
from benchmarks.gpu import gpu_plan, tune
from benchmarks.gpu.gpu_record import Stage, facts
from benchmarks.measure import kernel_times
from benchmarks.report.bars import Row
from benchmarks.report.markdown import table
from benchmarks.workloads import DTYPES

_STATES = {True: "passed", False: "FAILED"}
_FAILED = 25  # tests that are named
_LONGEST = 200  # letters of a note


def page(stages: Mapping[str, Stage]) -> str:
    """The whole report.

    Args:
        stages: What `gpu_record.read` has found.
    """
    about = facts(stages)
    parts = [f"# GPU check on {about.get('device', 'an unnamed device')}"]
    parts.append("\n".join(line for name, stage in stages.items() for line in state(name, stage)))
    parts.append("\n".join(f"- {key}: {fact}" for key, fact in about.items()))
    timed, beside, rates = timed_rows(stages), peer_rows(stages), ceiling_rates(stages)
    swept = _rows(stages, "sweep")
    if timed:
        parts += [gpu_plan.verdicts([*timed, *beside], on_gpu=_on_gpu(about)), times(timed)]
    parts += [*shares(timed, rates), peers(beside), kernels(stages)]
    parts += [tune.winners(swept), tune.times(swept)]
    return "\n\n".join(filter(None, parts)) + "\n"


def summary(stages: Mapping[str, Stage]) -> str:
    """What matters most of it, for a terminal that shows little: failures, winners, verdicts."""
    timed, beside = timed_rows(stages), peer_rows(stages)
    parts = ["\n".join(_failed_tests(stages)), tune.winners(_rows(stages, "sweep"))]
    if timed:
        parts.append(gpu_plan.verdicts([*timed, *beside], on_gpu=_on_gpu(facts(stages))))
    parts.append(kernels(stages))
    return "\n\n".join(filter(None, parts))


def state(name: str, stage: Stage, most: int | None = None) -> list[str]:
    """A line for a stage, and one for each of its first notes."""
    done = "has not ended" if stage["seconds"] is None else f"in {stage['seconds']} s"
    told = [f"{len(stage['rows'])} rows"]
    tests = [row["outcome"] for row in stage["rows"] if "outcome" in row]
    if tests:
        told = [f"{tests.count(each)} {each}" for each in dict.fromkeys(tests)]
    lines = [f"- {name}: {_STATES[stage['passed']]} {done}, {', '.join(told)}"]
    notes = stage["notes"][:most]
    lines += [f"    - {note[:_LONGEST]}" for note in notes]
    if more := len(stage["notes"]) - len(notes):
        lines.append(f"    - and {more} more notes")
    lines += [
        f"    - {row['peer']}: {row['reason'] or 'timed'}" for row in stage["rows"] if "peer" in row
    ]
    return lines


def timed_rows(stages: Mapping[str, Stage]) -> list[Row]:
    """Times of ours and of what is in this repository."""
    return [*_rows(stages, "benchmark"), *_rows(stages, "matrix")]


def peer_rows(stages: Mapping[str, Stage]) -> list[Row]:
    """Times of other libraries, and of ours beside them."""
    return [row for peer in _rows(stages, "peers") for row in peer["rows"]]


def ceiling_rates(stages: Mapping[str, Stage]) -> dict[str, dict[str, float]]:
    """What the GPU gives, by what it was asked for."""
    return {row["ceiling"]: row["rate"] for row in _rows(stages, "ceilings")}


def kernels(stages: Mapping[str, Stage]) -> str:
    """A table of the kernels of each call; "" where none were seen."""
    body = [
        [
            *(row["label"], row["mode"], kernel_times.short(row["kernel"])),
            *(f"{row['launches']:g}", f"{1e6 * row['seconds']:.1f}"),
        ]
        for name in ("kernels", "ncu")
        for row in _rows(stages, name)
    ]
    return table(["workload", "mode", "kernel", "launches", "us of a call"], body) if body else ""


def _failed_tests(stages: Mapping[str, Stage]) -> list[str]:
    failed = [
        f"{row['test']}: {row['error'].strip().splitlines()[-1]}"
        for stage in stages.values()
        for row in stage["rows"]
        if row.get("outcome") == "failed"
    ]
    return [line[:_LONGEST] for line in failed[:_FAILED]]


def _rows(stages: Mapping[str, Stage], name: str) -> list[Row]:
    return list(stages[name]["rows"]) if name in stages else []


def _on_gpu(about: Mapping[str, Any]) -> bool:
    return str(about.get("device", "cpu")) != "cpu"


def times(rows: Iterable[Row]) -> str:
    """A table of times; ratios are of the device's, to whom a row was timed beside."""
    heads = ["workload", "mode", "variant", "device us", "flushed us", "alone us", "host us"]
    keys = ("seconds", "flushed", "wall", "host")
    body = [
        [
            *(row["label"], row["mode"], gpu_plan.variant_name(row)),
            *(f"{1e6 * row[key]['median']:.1f}" for key in keys),
            f"{row['ratio']['median']:.2f}",
        ]
        for row in rows
    ]
    return table([*heads, "times ours"], body)


def peers(rows: Sequence[Row]) -> str:
    """The same of other libraries; "" where none was timed."""
    return f"Other libraries, each beside ours:\n\n{times(rows)}" if rows else ""


def shares(rows: Sequence[Row], rates: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What our kernels move, what the GPU gives, and the one as a share of the other.

    Args:
        rows: Of the benchmark.
        rates: What `gpu_roofline.measure` has found, or nothing.

    Returns:
        Parts of a page; "" for what was not measured.
    """
    return [_achieved(rows, rates), _added(rows, rates), _ceilings(rates)]


def _achieved(rows: Iterable[Row], rates: Mapping[str, Mapping[str, float]]) -> str:
    """What our forward reads a second: a table with its explanation; "" without such a row."""
    body = []
    for row in rows:
        if "gathered_bytes" not in row:
            continue
        workload = row["workload"]
        row_bytes = workload["head_dim"] * DTYPES[workload["dtype"]].itemsize
        gathered = row["gathered_bytes"] / row["seconds"]["median"]
        compulsory = row["compulsory_bytes"] / row["flushed"]["median"]
        limits = [gpu_roofline.gather_name(row_bytes, level) for level in ("L1", "L2")]
        body.append(
            [
                row["label"],
                f"{gathered / 1e9:.0f}",
                *(_share(gathered, rates.get(limit)) for limit in limits),
                f"{compulsory / 1e9:.0f}",
                _share(compulsory, rates.get(gpu_roofline.copy_name("DRAM"))),
            ]
        )
    if not body:
        return ""
    heads = ["workload", "gathered GB/s", "of L1 gathers", "of L2 gathers"]
    heads += ["compulsory GB/s", "of DRAM copies"]
    explained = (
        "Our forward: bytes of all corner rows, by device time, against random rows of that size;\n"
        "and bytes of all arguments and the result, each once, by the time with a flushed cache:"
    )
    return f"{explained}\n\n{table(heads, body)}"


def _added(rows: Iterable[Row], rates: Mapping[str, Mapping[str, float]]) -> str:
    """What our backward adds a second to the value's gradient, likewise."""
    limits = {
        numbers: rates.get(gpu_roofline.addition_name(numbers, "spread"))
        for numbers in gpu_roofline.NUMBERS
    }
    body = []
    for row in rows:
        if "added_numbers" not in row:
            continue
        rate = row["added_numbers"] / row["seconds"]["median"]
        shares = [_share(rate, limit) for limit in limits.values()]
        body.append([row["label"], row["added"], f"{rate / 1e9:.1f}", *shares])
    if not body:
        return ""
    heads = ["workload", "added", "G numbers/s", *(f"of {n} at once, spread" for n in limits)]
    explained = (
        "Our backward: numbers added to the value's gradient, by the device time of all that it "
        "does:"
    )
    return f"{explained}\n\n{table(heads, body)}"


def _ceilings(rates: Mapping[str, Mapping[str, float]]) -> str:
    """A table of what the GPU gives; "" where that was not measured."""
    if not rates:
        return ""
    body = [
        [name, *(f"{rate[key] / 1e9:.0f}" for key in ("median", "q1", "q3"))]
        for name, rate in rates.items()
    ]
    return table(["ceiling, G bytes or additions a second", "median", "q1", "q3"], body)


def _share(rate: float, limit: Mapping[str, float] | None) -> str:
    return "-" if limit is None else f"{rate / limit['median']:.0%}"
