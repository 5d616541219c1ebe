"""The CPU kernels on other machines, cross-compiled and emulated, and on this one without PyTorch.

One program runs all calls, one after the other. A call is a sequence of 64-bit integers with the
elements of arrays between them: whether it is a backward, and what tests/cross/calls.cpp reads
next. It has no PyTorch whose OpenMP runtime it could use, so the threads are std::thread's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.cross import targets
from tests.cross.targets import ROOT, Target
from tests.support.compiled import alone

THREADS = 3
WINE_HOME = ROOT / "build" / "cross" / "wine"

# The codes of csrc/core/dtype.h.
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs programs.

    Attributes:
        target: What compiles them.
        link_flags: What links one that needs no library of the machine.
        emulators: Commands of which the first that is found runs them; none for this machine.
        package: What brings the emulator, of Debian and Ubuntu.
    """

    target: Target
    link_flags: tuple[str, ...] = ()
    emulators: tuple[str, ...] = ()
    package: str = ""

    def missing(self) -> str:
        """Why its programs cannot be compiled and run here; "" if they can."""
        reasons = [self.target.missing()]
        if self.emulators and not self._emulator():
            reasons.append(
                f"{self.emulators[0]} was not found (Debian and Ubuntu: install {self.package})"
            )
        return "; ".join(filter(None, reasons))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts the program that runs calls, or without arguments lists the ISAs it can use."""
        objects = [*self.target.core(), self.target.compile("tests/cross/calls.cpp")]
        program = self.target.link(objects, "calls.exe", *self.link_flags)
        environment = _wine_environment() if "wine" in self._emulator() else os.environ
        environment = {**environment, "TSAN_OPTIONS": "halt_on_error=1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*filter(None, [self._emulator()]), str(program), *arguments]
        return subprocess.Popen(command, env=environment, **pipes)

    @functools.cache  # noqa: B019  # the few machines live as long as the process
    def isas(self) -> list[str]:
        """The instruction sets that its kernels can use here, fastest first."""
        said, errors = self.start().communicate()
        assert said, errors.decode()
        return said.decode().split()

    def _emulator(self) -> str:
        return next(filter(None, map(shutil.which, self.emulators)), "")


MACHINES = {
    "arm": Machine(targets.ARM, ("-static",), ("qemu-aarch64",), "qemu-user"),
    "windows": Machine(targets.WINDOWS, (), ("wine",), "wine"),
    "sanitized": Machine(targets.SANITIZED, ("-lpthread", "-ldl")),
}
# As the tests name them; those of Windows have the instruction sets of this processor.
NAMES = [f"{name}-{isa}" for name, machine in MACHINES.items() for isa in machine.target.isas]


class Calls:
    """A running program that computes one call after the other."""

    def __init__(self, machine: Machine, isa: str) -> None:
        self._start = functools.partial(machine.start, isa)
        self._process = self._start()

    def run(
        self,
        inputs: Sequence[Tensor | None],
        tables: Sequence[Any],
        wanted: Sequence[Tensor | None],
    ) -> None:
        """Runs one call.

        Args:
            inputs: value, reference points or None, positions and scores; for a backward also
                grad_out; sizes as in csrc/core/problem.h.
            tables: spatial_shapes and num_points, of each level.
            wanted: What is written, contiguous: the result, or the gradient of each of the first
                four inputs, None where it is not needed.

        Raises:
            RuntimeError: The program has ended; its messages are the text.
        """
        if self._process.poll() is not None:  # after an error
            self._process = self._start()
        value, reference, positions = inputs[:3]
        shapes, num_points = tables
        num_axes = positions.shape[-1]
        boxes = reference is not None and reference.shape[-1] == 2 * num_axes
        sizes = (*value.shape, positions.shape[1], len(shapes), positions.shape[3])
        numbers = [len(inputs) == 5, THREADS, num_axes, *sizes, boxes, *num_points]
        numbers += itertools.chain(*shapes)
        call = [_integers(numbers), *map(_array, inputs), *map(_dtype, wanted)]
        try:
            self._process.stdin.write(b"".join(call))
            self._process.stdin.flush()
            for each in wanted:
                if each is not None:
                    self._read(each)
        except BrokenPipeError:
            said = self._process.communicate()[1].decode()
            code = self._process.returncode
            raise RuntimeError(f"the program ended with exit status {code}: {said}") from None

    def close(self) -> None:
        """Ends the program."""
        if self._process.poll() is None:
            self._process.communicate()

    def _read(self, into: Tensor) -> None:
        count = into.numel() * into.element_size()
        answer = bytearray(self._process.stdout.read(count))
        if len(answer) < count:
            raise BrokenPipeError
        into.copy_(torch.frombuffer(answer, dtype=into.dtype).view(into.shape))


@functools.cache
def _wine_environment() -> dict[str, str]:
    """Wine's settings, with its files in build/; makes them unless they are there."""
    quiet = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}  # no .NET, no browser
    environment = {**os.environ, **quiet, "WINEPREFIX": str(WINE_HOME)}
    with alone(WINE_HOME):
        if not (WINE_HOME / "system.reg").exists():
            subprocess.run(
                ["wine", "wineboot", "--init"], env=environment, check=True, capture_output=True
            )
    return environment


def _integers(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _dtype(tensor: Tensor | None) -> bytes:
    return _integers([-1 if tensor is None else _DTYPES[tensor.dtype]])


def _array(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return _dtype(None)
    elements = tensor.detach().contiguous().flatten().view(torch.uint8)
    return _dtype(tensor) + elements.numpy().tobytes()
