"""A stage of `gpu-check`: what it is given, what it may do, and the file that keeps its findings.

That file has lines of JSON, each written as soon as something happens, so that a stop at any moment
loses what was running and no more. A line names its stage and holds one of:

    began   a stage starts; what the file holds of earlier runs of it counts no longer
    row     a test, a problem, a library that was looked for; times are in the results
    note    a sentence for the page
    trying  something that may crash the process, or make the device unusable
    done    it ended well
    end     whether the stage passed, and its seconds
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import processes
from benchmarks.measure.recording import Recorder
from benchmarks.measure.rows import Row
from benchmarks.report.gpu_tables import SUITE

Found = dict[str, Any]  # "rows", "notes", "tried", "done", and of its end "passed" and "seconds"

FINDINGS = "gpu-check.jsonl"
RESULTS = "results.jsonl"
_LISTS = {"row": "rows", "note": "notes", "trying": "tried", "done": "done"}
_VARIABLE = "STDEFORM_GPU_STAGE"  # of programs that a stage starts: the stage, as JSON
_MARGIN = 3.0  # seconds, to write down what was found


class LostDeviceError(RuntimeError):
    """After an error of a kernel nothing runs on the GPU any more, in this process."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    output: str  # a folder
    device: str = "cuda"  # or "cpu" for a dry run without a GPU
    deadline: float = math.inf  # when it is stopped, on the clock of `time.monotonic`
    quick: bool = False  # few tests, tiny problems
    prebuilt: str = ""  # a folder with a build to take
    words: tuple[str, ...] = ()  # of the command line, but for paths

    @classmethod
    def of_environment(cls) -> Stage:
        """The stage that has started this program."""
        return cls(**json.loads(os.environ[_VARIABLE]))

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a program of this stage."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self))}

    @property
    def rounds(self) -> int:
        """Of timing."""
        return 3 if self.quick else 15

    @property
    def left(self) -> float:
        """Seconds that the stage may still take, so that it ends before it is stopped."""
        return self.deadline - _MARGIN - time.monotonic()

    @property
    def log(self) -> Path:
        """Where the output of the stage and of its programs goes."""
        return Path(self.output, f"{self.name}.log")

    def write(self, **what: Any) -> None:
        """Adds a line to the findings: began, row, trying, done or end with what it holds."""
        with Path(self.output, FINDINGS).open("a") as file:
            # The line before may have been cut off when the machine stopped.
            file.write("\n" + json.dumps({"stage": self.name, **what}))

    def note(self, text: str) -> None:
        """Adds a sentence, and prints it."""
        print(f"   {text}", flush=True)
        self.write(note=text)

    def read(self) -> Found:
        """What it has found so far."""
        return read(self.output).get(self.name) or _nothing()

    @functools.cached_property
    def _recorder(self) -> Recorder:
        options = argparse.Namespace(output=Path(self.output, RESULTS))
        return Recorder(SUITE, options, [SUITE, *self.words], device=self.device, append=True)

    def add(self, rows: Iterable[Row]) -> list[Row]:
        """Writes rows of results, each as soon as it is measured; those rows."""
        return list(self._recorder.add(rows))

    def call(self, command: list[str], **environment: str) -> bool:
        """Runs a program, its output into the stage's log; whether it ended well."""
        print("   " + " ".join(command), flush=True)
        variables = {**self.environment, **environment}
        status = processes.run(command, max(1.0, self.left), self.log, variables)
        if status != 0:
            ended = "was stopped" if status is None else f"ended with status {status}"
            program = " ".join([Path(command[0]).name, *command[1:3]])
            self.note(f"{program} {ended}, see gpu-check.log")
        return status == 0

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Notes an error of what may fail, and goes on with the next one if the GPU is alive."""
        self.write(trying=what)
        try:
            yield
        except Exception as error:  # no memory, say
            self.note(f"{what}: {first_line(error)}")
            self.check_device()

    def check_device(self) -> None:
        """Raises `LostDeviceError` if the GPU no longer answers."""
        try:
            torch.ones(1, device=self.device).item()
        except torch.cuda.OutOfMemoryError:
            pass
        except RuntimeError as error:
            raise LostDeviceError(str(error).partition("\n")[0]) from error


def read(output: str | Path) -> dict[str, Found]:
    """The last run of every stage in a folder; no stages if there is no file."""
    stages: dict[str, Found] = {}
    path = Path(output, FINDINGS)
    for line in path.read_text().split("\n") if path.is_file() else ():
        try:
            said = json.loads(line)
        except json.JSONDecodeError:  # half of one, or the empty first one
            continue
        name = said["stage"]
        if "began" in said or name not in stages:
            stages[name] = _nothing()
        for key, into in _LISTS.items():
            if key in said:
                stages[name][into].append(said[key])
        stages[name].update(said.get("end", {}))
    return stages


def _nothing() -> Found:
    return {**{name: [] for name in _LISTS.values()}, "passed": False, "seconds": None}


def first_line(error: BaseException) -> str:
    """What went wrong, without the pages that compilers add."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
