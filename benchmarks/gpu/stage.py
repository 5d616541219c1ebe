"""What every stage of `gpu-check` is given, and what all of them may need."""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.record import Record
from benchmarks.measure import processes
from benchmarks.measure.recording import Recorder
from benchmarks.measure.rows import Row
from benchmarks.report import tables
from benchmarks.report.gpu_tables import SUITE

RESULTS = "results.jsonl"
_MARGIN = 3.0  # seconds, to write down what was found


class LostDeviceError(RuntimeError):
    """After an error of a kernel nothing runs on the GPU any more, in this process."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    device: str  # "cuda", or "cpu" for a dry run without a GPU
    output: Path  # a folder
    deadline: float  # when it is stopped, on the clock of `time.monotonic`
    quick: bool = False  # few tests, tiny problems
    rounds: int = 15  # of timing
    argv: tuple[str, ...] = (SUITE,)  # the command line, without folders
    prebuilt: Path | None = None  # a folder with a build to take

    @functools.cached_property
    def record(self) -> Record:
        """Where everything goes that is not a row of results."""
        return Record(self.output, self.name)

    @functools.cached_property
    def _recorder(self) -> Recorder:
        options = argparse.Namespace(output=self.output / RESULTS)
        return Recorder(SUITE, options, list(self.argv), device=self.device, append=True)

    def add(self, rows: Iterable[Row]) -> list[Row]:
        """Writes rows of results, each as soon as it is measured; those rows."""
        added = []
        for row in self._recorder.add(rows):
            if row["measurement"] == "latency":
                print(tables.line(row), flush=True)
            added.append(row)
        return added

    @property
    def left(self) -> float:
        """Seconds that the stage may still take, so that it ends before it is stopped."""
        return self.deadline - _MARGIN - time.monotonic()

    @property
    def log(self) -> Path:
        """Where the output of the stage and of its programs goes."""
        return self.output / f"{self.name}.log"

    def call(self, command: list[str], **environment: str) -> int | None:
        """Runs a program, its output into the stage's log; its status, None if it was stopped."""
        print("   " + " ".join(command), flush=True)
        return processes.run(command, max(1.0, self.left), self.log, environment)

    def check_device(self) -> None:
        """Raises `LostDeviceError` if the GPU no longer answers."""
        if self.device == "cuda":
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                try:
                    torch.ones(1, device="cuda").item()
                except RuntimeError as error:
                    raise LostDeviceError(str(error).partition("\n")[0]) from error


def first_line(error: BaseException) -> str:
    """What went wrong, without the pages that compilers add."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
