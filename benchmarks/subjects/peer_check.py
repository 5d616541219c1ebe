"""One peer against our operator, in a process of its own: it may crash, hang or fill the GPU.

`gpu-check` starts `python -m benchmarks.subjects.peer_check REQUEST` and reads the lines that it
prints as JSON: rows as they are made, and what was missing.
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
from benchmarks.subjects.answers import check_answers
from benchmarks.subjects.peers import PEERS, bring, is_installed, place_of
from benchmarks.subjects.prepared import ALL_MODES
from benchmarks.subjects.variants import VARIANTS

_OURS = "native"
_SAYS = "peer-check: "  # before what is said in JSON; a peer may print what it likes


class Finding(TypedDict):
    """What came of a peer.

    Attributes:
        rows: Its times and ours, beside each other.
        reason: Why there are none, or none of some mode; "" if nothing is missing.
    """

    rows: list[Row]
    reason: str


def check_peer(
    name: str, folder: Path, device: str, *, rounds: int, quick: bool, seconds: float
) -> Finding:
    """Builds, checks and times one peer beside our operator; whatever goes wrong is a reason.

    Args:
        name: Of `PEERS`.
        folder: With checkouts of other libraries, or none.
        device: "cuda" or "cpu".
        rounds: Of timing.
        quick: On a handful of cells.
        seconds: After which it is stopped.
    """
    if not is_installed(name) and place_of(name, folder) is None:
        return Finding(rows=[], reason=f"neither installed nor below {folder.name}/")
    request = {
        "name": name,
        "folder": str(folder.resolve()),
        "device": device,
        "rounds": rounds,
        "quick": quick,
    }
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "log")
        status = processes.run(command, seconds, log)
        lines = log.read_text(errors="replace").strip().splitlines()
    rows, reason = [], ""
    for line in lines:
        if line.startswith(_SAYS):
            said = json.loads(line.removeprefix(_SAYS))
            rows += said.get("rows", [])
            reason = said.get("reason", reason)
    if status is None:
        reason = f"stopped after {seconds:.0f} s"
    elif status:
        reason = [f"exit status {status}", *lines][-1]
    return Finding(rows=rows, reason=reason)


def _find(name: str, folder: Path, device: str, rounds: int, quick: bool) -> Finding:
    workload = PEERS[name].workload
    if quick:
        workload = dataclasses.replace(workload.shrunk(), name=f"{workload.name}-shrunk")
    bring(name, folder)
    variants = {each: VARIANTS[each].prepare(workload, 0).to(device) for each in (_OURS, name)}
    check_answers(workload, {_OURS: variants[_OURS]})
    check_answers(workload, {name: variants[name]}, gradients=False)
    modes, reason = list(ALL_MODES), ""
    try:
        check_answers(workload, {name: variants[name]})
    except Exception as error:  # its forward is worth having all the same
        modes, reason = ["forward"], f"forward only: {first_line(error)}"
    rows = []
    for row in compare(workload, variants, modes, device, rounds=rounds):
        _say(rows=[row])
        rows.append(row)
    return Finding(rows=rows, reason=reason)


def _say(**what: object) -> None:
    print(_SAYS + json.dumps(what), flush=True)


def _main() -> None:
    request = json.loads(sys.argv[1])
    try:
        reason = _find(**{**request, "folder": Path(request["folder"])})["reason"]
    except Exception as error:
        reason = first_line(error)
    _say(reason=reason)


if __name__ == "__main__":
    _main()
