"""One third-party baseline beside our operator, in a process of its own.

It may crash, hang or fill the GPU. `gpu-check` starts
`python -m benchmarks.gpu.third_party_check REQUEST` and reads the JSON lines that it prints: rows
as they are made, and what was missing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

from benchmarks.gpu.gpu_job import first_line
from benchmarks.measure import processes
from benchmarks.measure.comparison import compare
from benchmarks.report.bars import Row
from benchmarks.subjects.base import ALL_MODES
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY

_OURS = "native"
_PREFIX = "third-party: "  # of a JSON line; the library may print other lines


class Finding(TypedDict):
    """What came of a baseline.

    Attributes:
        rows: Its times and ours, beside each other.
        reason: Why there are none, or none of some mode; "" if nothing is missing.
    """

    rows: list[Row]
    reason: str


def check_third_party(
    name: str, device: str, *, rounds: int, quick: bool, seconds: float
) -> Finding:
    """Checks and times one baseline beside our operator; every failure is a reason.

    Args:
        name: Of `THIRD_PARTY`.
        device: "cuda" or "cpu".
        rounds: Of timing.
        quick: On a handful of cells.
        seconds: After which it is stopped.
    """
    if not THIRD_PARTY[name].is_installed:
        return Finding(rows=[], reason="not installed")
    request = {"name": name, "device": device, "rounds": rounds, "quick": quick}
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        status = processes.run(command, seconds, log)
        lines = log.read_text(errors="replace").strip().splitlines()
    rows, reason = [], ""
    for line in lines:
        if line.startswith(_PREFIX):
            found = json.loads(line.removeprefix(_PREFIX))
            rows += found.get("rows", [])
            reason = found.get("reason", reason)
    if status is None:
        reason = f"stopped after {seconds:.0f} s"
    elif status:
        reason = [f"exit status {status}", *lines][-1]
    return Finding(rows=rows, reason=reason)


def _find(name: str, device: str, rounds: int, quick: bool) -> Finding:
    workload = THIRD_PARTY[name].workload
    if quick:
        workload = dataclasses.replace(workload.shrunk(), name=f"{workload.name}-shrunk")
    cases = {each: IMPLEMENTATIONS[each].prepare(workload, 0).to(device) for each in (_OURS, name)}
    theirs = {name: cases[name]}
    check_correctness(workload, {_OURS: cases[_OURS]})
    check_correctness(workload, theirs, gradients=False)
    modes, reason = list(ALL_MODES), ""
    try:
        check_correctness(workload, theirs)
    except Exception as error:  # its forward is worth having
        modes, reason = ["forward"], f"forward only: {first_line(error)}"
    rows = []
    for row in compare(workload, cases, modes, device, rounds=rounds):
        _print(rows=[row])
        rows.append(row)
    return Finding(rows=rows, reason=reason)


def _print(**found: object) -> None:
    print(_PREFIX + json.dumps(found), flush=True)


if __name__ == "__main__":
    try:
        missing = _find(**json.loads(sys.argv[1]))["reason"]
    except Exception as error:
        missing = first_line(error)
    _print(reason=missing)
