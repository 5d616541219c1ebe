"""What `gpu-check` has found as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import gpu_plan
from .bars import Row
from .markdown import table

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
    if rows:
        parts.append(gpu_plan.verdicts(rows, on_gpu=facts.get("device") != "cpu"))
        parts.append(times(rows))
    peers = stages.get("peers", {}).get("peers", {})
    beside = [row for peer in peers.values() for row in peer["rows"]]
    if beside:
        parts.append(f"Other libraries, each beside ours:\n\n{times(beside)}")
    return "\n\n".join(filter(None, parts)) + "\n"


def times(rows: Iterable[Row]) -> str:
    """A table of times; ratios are of the device's, to whom a row was timed beside."""
    heads = ["workload", "mode", "variant", "device us", "flushed us", "alone us", "host us"]
    keys = ("device", "flushed", "wall", "host")
    body = [
        [
            *(row[key] for key in ("workload", "mode", "variant")),
            *(f"{1e6 * row[key]['median']:.1f}" for key in keys),
            f"{row['ratio']['median']:.2f}",
        ]
        for row in rows
    ]
    return table([*heads, "times ours"], body)


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
