"""What every stage of `gpu-check` is told, and what all of them may need."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.gpu_record import Record
from benchmarks.measure import processes

_MARGIN = 3.0  # seconds, to say what was found


class LostDeviceError(RuntimeError):
    """After an error of a kernel nothing runs on the GPU any more, in this process."""


@dataclass(frozen=True)
class Job:
    """One stage of a run.

    Attributes:
        device: "cuda", or "cpu" to walk through without a GPU.
        quick: Few tests, tiny problems.
        deadline: When the stage is stopped, on the clock of `time.monotonic`.
        rounds: Of timing.
        output: The folder for everything that is written.
        record: Where rows and notes go.
        words: The command line, without folders.
        prebuilt: A folder with a build to take; None for none.
    """

    device: str
    quick: bool
    deadline: float
    rounds: int
    output: Path
    record: Record
    words: tuple[str, ...]
    prebuilt: Path | None

    @property
    def left(self) -> float:
        """Seconds that the stage may still take, so that it ends before it is stopped."""
        return self.deadline - _MARGIN - time.monotonic()

    def call(self, command: list[str], **environment: str) -> int | None:
        """Runs a program, its output into the stage's log; its status, None if it was stopped."""
        print("   " + " ".join(command), flush=True)
        return processes.run(command, max(1.0, self.left), self.log, environment)

    @property
    def log(self) -> Path:
        """Where the output of the stage and of its programs goes."""
        return self.output / f"{self.record.stage}.log"

    def check_device(self) -> None:
        """Raises `LostDeviceError` if the GPU answers no more."""
        if self.device == "cuda":
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                try:
                    torch.ones(1, device="cuda").item()
                except RuntimeError as error:
                    raise LostDeviceError(str(error).partition("\n")[0]) from error


def first_line(error: BaseException) -> str:
    """What went wrong, without the pages that compilers add."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def architecture(device: str) -> str:
    """The GPU's compute capability without its dot; without a GPU that of Hopper, "90"."""
    if device != "cuda":
        return "90"
    return "".join(map(str, torch.cuda.get_device_capability(0)))
