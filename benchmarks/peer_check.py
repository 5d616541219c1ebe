"""One peer against our operator, in a process of its own: it may crash, hang or fill the GPU.

`gpu-check` starts `python -m benchmarks.peer_check REQUEST` and reads the last line of what it
prints.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from .answers import check_answers
from .bars import Row
from .comparison import compare, describe
from .peers import PEERS, bring, is_installed, place_of
from .prepared import ALL_MODES
from .variants import VARIANTS

_ROOT = Path(__file__).parents[1]
_OURS = "native"


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
    # In a group of its own, so that compilers it has started end with it.
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, complained = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Finding(rows=[], reason=f"stopped after {seconds:.0f} s")
    if process.returncode:
        said = [f"exit status {process.returncode}", *complained.strip().splitlines()]
        return Finding(rows=[], reason=said[-1])
    finding: Finding = json.loads(told.splitlines()[-1])
    return finding


def first_line(error: Exception) -> str:
    """What went wrong, without the pages that compilers add."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


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
    rows = list(compare(workload, variants, modes, device, rounds=rounds))
    return Finding(rows=rows, reason=reason)


def _main() -> None:
    request = json.loads(sys.argv[1])
    finding: Finding
    try:
        finding = _find(**{**request, "folder": Path(request["folder"])})
    except Exception as error:
        finding = Finding(rows=[], reason=first_line(error))
    for row in finding["rows"]:
        print(describe(row))
    print(json.dumps(finding))


if __name__ == "__main__":
    _main()
