"""A function called in a fresh process: request and answers travel as JSON.

`python -m benchmarks.measure.isolated MODULE:FUNCTION REQUEST` calls a generator function with the
fields of the request and prints each answer as soon as it is there.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import processes

_PREFIX = "answer: "  # of a line with an answer; what is called may print other lines


def call(
    function: str,
    request: Mapping[str, Any],
    *,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[list[Any], str]:
    """Calls a function in a process of its own, which may crash or hang.

    Args:
        function: "module:name" of a generator function.
        request: Its arguments by name.
        seconds: After which it is stopped; None for never.
        environment: Further variables.

    Returns:
        The answers it gave, and why it did not end well; "" if it did.
    """
    command = [sys.executable, "-m", __name__, function, json.dumps(request)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        status = processes.run(command, seconds, log, environment)
        lines = log.read_text(errors="replace").strip().splitlines()
    answers = [json.loads(line.removeprefix(_PREFIX)) for line in lines if _is_answer(line)]
    if status is None:
        return answers, f"stopped after {seconds:.0f} s"
    said = [line for line in lines if not _is_answer(line)]
    return answers, "" if status == 0 else [f"exit status {status}", *said][-1]


def _is_answer(line: str) -> bool:
    return line.startswith(_PREFIX)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    for answer in getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2])):
        print(_PREFIX + json.dumps(answer), flush=True)
