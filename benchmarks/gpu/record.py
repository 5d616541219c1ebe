"""The progress of `gpu-check`: a file of JSON lines, each written as soon as something happens.

So a stop at any moment loses what was running and no more. A line names its stage and holds one of:

    began   a stage starts; what the file holds of earlier runs of it counts no longer
    row     a test, a problem, a library that was looked for; times are in the results
    note    a sentence for the page
    trying  something that may crash the process, or make the device unusable
    done    it ended well
    end     whether the stage passed, and its seconds
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Found = dict[str, Any]  # "rows", "notes", "tried", "done", and of its end "passed" and "seconds"

NAME = "gpu-check.jsonl"
_LISTS = {"row": "rows", "note": "notes", "trying": "tried", "done": "done"}


class Record:
    """Writes the lines of one stage.

    Args:
        folder: For the file; made if it is not there.
        stage: The stage's name.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.stage = stage

    def write(self, **what: Any) -> None:
        """Adds a line: began, row, trying, done or end with what it holds."""
        line = json.dumps({"stage": self.stage, **what}) + "\n"
        with self.path.open("a") as file:  # one write, which no stop cuts in half
            file.write(line)

    def note(self, text: str) -> None:
        """Adds a sentence, and prints it."""
        print(f"   {text}", flush=True)
        self.write(note=text)

    def read(self) -> Found:
        """The stage as it is in the file."""
        return read(self.path).get(self.stage) or _started()


def of_environment() -> Record:
    """The record of the stage that has started this program, by the variables it has set."""
    return Record(Path(os.environ["STDEFORM_GPU_RECORD"]), os.environ["STDEFORM_GPU_STAGE"])


def read(path: Path) -> dict[str, Found]:
    """The last run of every stage in a file; no stages if there is no file."""
    stages: dict[str, Found] = {}
    text = path.read_text() if path.is_file() else ""
    # A line without an end is being written, or was when the machine stopped.
    for line in text[: text.rfind("\n") + 1].splitlines():
        said = json.loads(line)
        name = said["stage"]
        if "began" in said or name not in stages:
            stages[name] = _started()
        for key, into in _LISTS.items():
            if key in said:
                stages[name][into].append(said[key])
        stages[name].update(said.get("end", {}))
    return stages


def facts(stages: Mapping[str, Found]) -> dict[str, Any]:
    """What the stage `environment` has found out about the machine; empty if it did not run."""
    rows = stages["environment"]["rows"] if "environment" in stages else []
    return dict(rows[0]) if rows else {}


def _started() -> Found:
    return {**{name: [] for name in _LISTS.values()}, "passed": False, "seconds": None}
