"""The command line: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.commands import (
    complexity,
    defvis,
    export,
    host_time,
    layers,
    models,
    operator,
    parts,
    report,
)
from benchmarks.gpu import build, check
from benchmarks.subjects.base import WrongAnswerError

_COMMANDS = {
    "operator": operator,
    "complexity": complexity,
    "layers": layers,
    "defvis": defvis,
    "models": models,
    "export": export,
    "parts": parts,
    "report": report,
    "gpu-check": check,
    "host-time": host_time,
    "prebuilt": build,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: As on the command line; by default those of this process.

    Returns:
        The exit status: 1 if an answer was wrong, and then nothing was timed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _COMMANDS.items():
        described = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=described, description=described))
    options = parser.parse_args(arguments, argparse.Namespace(argv=arguments))
    try:
        status: int = _COMMANDS[options.command].run(options)
    except WrongAnswerError as error:
        print(f"wrong answer, nothing was timed: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
