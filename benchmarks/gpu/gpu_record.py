"""What `gpu-check` finds: a file of JSON lines, each written as soon as there is something to say.

So a stop at any moment loses what was running and no more. A line names its stage and holds one of:

    began   a stage starts; what the file holds of earlier runs of it counts no longer
    row     a figure, a test, a program that ran
    note    a sentence for the page
    trying  something that may crash, or take the device along
    done    that it has not
    end     whether the stage passed, and its seconds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Stage = dict[str, Any]  # "rows", "notes", "tried", "done", and of its end "passed" and "seconds"

NAME = "gpu-check.jsonl"
_LISTS = {"row": "rows", "note": "notes", "trying": "tried", "done": "done"}


class Record:
    """Writes the lines of one stage.

    Args:
        folder: Where the file lies; made if it is not there.
        stage: The stage's name.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.stage = stage

    def begin(self, time: str) -> None:
        """Starts the stage."""
        self._write(began=time)

    def row(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        self._write(row=row)

    def note(self, text: str) -> None:
        """Adds a sentence, and prints it."""
        print(f"   {text}", flush=True)
        self._write(note=text)

    def trying(self, what: str) -> None:
        """Remembers what may be the last thing that this process does."""
        self._write(trying=what)

    def done(self, what: str) -> None:
        """Remembers that it was not."""
        self._write(done=what)

    def end(self, *, passed: bool, seconds: float) -> None:
        """Ends the stage."""
        self._write(end={"passed": passed, "seconds": round(seconds, 1)})

    def read(self) -> Stage:
        """The stage as it is in the file."""
        return read(self.path).get(self.stage) or _started()

    def _write(self, **what: Any) -> None:
        line = json.dumps({"stage": self.stage, **what}) + "\n"
        with self.path.open("a") as file:  # one write, which no stop cuts in half
            file.write(line)


def read(path: Path) -> dict[str, Stage]:
    """The last run of every stage in a file; no stages if there is no file."""
    stages: dict[str, Stage] = {}
    text = path.read_text() if path.is_file() else ""
    # A line without an end is being written, or was when the machine stopped.
    for line in text[: text.rfind("\n") + 1].splitlines():
        said = json.loads(line)
        name = said["stage"]
        if "began" in said or name not in stages:
            stages[name] = _started()
        stage = stages[name]
        for key, into in _LISTS.items():
            if key in said:
                stage[into].append(said[key])
        stage.update(said.get("end", {}))
    return stages


def facts(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """What the stage `environment` has found out about the machine; empty if it did not run."""
    rows = stages["environment"]["rows"] if "environment" in stages else []
    return dict(rows[0]) if rows else {}


def _started() -> Stage:
    return {**{name: [] for name in _LISTS.values()}, "passed": False, "seconds": None}
