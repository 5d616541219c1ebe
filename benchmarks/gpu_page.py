"""What `gpu-check` has found as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import device_ceiling, gpu_plan
from .bars import Row
from .markdown import table
from .workloads import DTYPES

_STATES = {True: "passed", False: "FAILED"}


def page(stages: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        stages: What each stage has found, by its name: the contents of `gpu-check.json`.
    """
    facts = stages.get("environment", {})
    parts = [f"# GPU check on {facts.get('device', 'an unnamed device')}"]
    parts.append("\n".join(line for name, stage in stages.items() for line in _state(name, stage)))
    parts.append("\n".join(f"- {key}: {facts[key]}" for key in facts if key != "seconds"))
    rows = stages.get("benchmark", {}).get("rows", [])
    found = stages.get("peers", {}).get("peers", {})
    beside = [row for peer in found.values() for row in peer["rows"]]
    if rows:
        parts.append(gpu_plan.verdicts([*rows, *beside], on_gpu=facts.get("device") != "cpu"))
        parts.append(times(rows))
    rates = stages.get("ceilings", {}).get("rates", {})
    parts += [*shares(rows, rates), peers(beside)]
    return "\n\n".join(filter(None, parts)) + "\n"


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
        rates: What `device_ceiling.measure` has found, or nothing.

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
        limits = [device_ceiling.gather_name(row_bytes, level) for level in ("L1", "L2")]
        body.append(
            [
                row["label"],
                f"{gathered / 1e9:.0f}",
                *(_share(gathered, rates.get(limit)) for limit in limits),
                f"{compulsory / 1e9:.0f}",
                _share(compulsory, rates.get(device_ceiling.copy_name("DRAM"))),
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
        numbers: rates.get(device_ceiling.addition_name(numbers, "spread"))
        for numbers in device_ceiling.NUMBERS
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


def _state(name: str, stage: Mapping[str, Any]) -> Sequence[str]:
    """A stage's line, and those of its parts."""
    detail = " ".join(filter(None, map(stage.get, ("summary", "error", "left out"))))
    state = _STATES.get(stage.get("passed"), "done")  # type: ignore[arg-type]
    lines = [f"- {name}: {state} in {stage['seconds']} s {detail}".rstrip()]
    lines += [f"    - {key}: {part['summary']}" for key, part in stage.items() if _is_run(part)]
    lines += [
        f"    - {peer}: {found['reason'] or 'timed'}"
        for peer, found in stage.get("peers", {}).items()
    ]
    return lines


def _is_run(part: object) -> bool:
    return isinstance(part, dict) and "summary" in part
