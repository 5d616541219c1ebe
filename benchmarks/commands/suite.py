"""`python -m benchmarks all`: every command that measures on this machine, one after the other.

Less time for each comparison than they take alone, and of whole models the layers only: the rest
of them takes minutes a call on two cores. With `--quick` on tiny problems.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import recording
from benchmarks.metrics import METRICS

_ROOT = Path(__file__).parents[2]
# Seconds for the rounds of one comparison, by command: usually, and with --quick.
_SECONDS = {
    "operator": (8.0, 0.5),
    "layers": (6.0, 0.3),
    "complexity": (6.0, 0.2),
    "model": (6.0, 0.3),
}
_SLOW_ROUNDS = 1  # of dense attention on large volumes, which takes up to half a minute a call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--quick", action="store_true", help="tiny problems")
    recording.add_threads(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=_ROOT / "build" / "benchmarks",
        help="a folder for one file of JSON lines per command; by default build/benchmarks",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the commands, each in a process of its own: what one leaves in memory is not measured.

    Returns:
        The exit status: 1 if one of them failed; the others have run all the same.
    """
    failed = [
        name
        for name in _SECONDS
        if subprocess.run(
            [sys.executable, "-m", "benchmarks", *words(name, options)], cwd=_ROOT, check=False
        ).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def words(name: str, options: argparse.Namespace) -> list[str]:
    """The command line of one command."""
    seconds = _SECONDS[name][options.quick]
    output = options.output.absolute() / f"{name}.jsonl"
    chosen = [name, "--threads", str(options.threads), "--seconds", f"{seconds:g}"]
    chosen += ["--output", str(output)]
    if name == "model":
        chosen += ["--parts", "encoder layer", "decoder layer"]
    if name != "operator":
        chosen += ["--slow-rounds", str(_SLOW_ROUNDS)]
    if options.quick:
        chosen.append("--quick")
    elif name == "operator":
        chosen += ["--measure", *METRICS]
    return chosen
