"""The CPU kernels on an Arm processor: cross-compiled as setup.py compiles, run by QEMU.

One program runs all calls, one after the other. A call is a sequence of 64-bit integers with the
elements of arrays between them: whether it is a backward, and what tests/arm/calls.cpp reads next.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support import build_script
from tests.support.compiled import ROOT, make

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user"}  # of Debian and Ubuntu
THREADS = 3

# The codes of csrc/core/dtype.h.
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def missing() -> str:
    """Why Arm cannot be emulated here; "" if it can."""
    absent = [tool for tool in PACKAGES if not shutil.which(tool)]
    return "; ".join(
        f"{tool} was not found (Debian and Ubuntu: install {PACKAGES[tool]})" for tool in absent
    )


@functools.cache
def flags() -> list[str]:
    """The flags that setup.py compiles the portable kernels with."""
    names = build_script.load()
    return [*names["CXX_FLAGS"], *names["ISA_FLAGS"]["portable"]]


@functools.cache
def kernels() -> Path:
    """The object file of the portable kernels; compiled unless it is there."""
    output = _folder() / "isa_portable.o"
    make([COMPILER, *flags(), "-Werror", "-c", "csrc/cpu/isa_portable.cpp"], output)
    return output


@functools.cache
def program() -> Path:
    """What runs calls; compiled unless it is there."""
    output = _folder() / "calls"
    sources = [f"csrc/cpu/{name}.cpp" for name in ("isa", "threads/openmp", "threads/team")]
    sources += ["tests/arm/calls.cpp", str(kernels())]
    make([COMPILER, *flags(), "-Werror", "-static", *sources], output)
    return output


class Machine:
    """A running program that computes one call after the other."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen([EMULATOR, str(program())], **pipes)

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
        self._process.communicate()

    def _read(self, into: Tensor) -> None:
        count = into.numel() * into.element_size()
        answer = bytearray(self._process.stdout.read(count))
        if len(answer) < count:
            raise BrokenPipeError
        into.copy_(torch.frombuffer(answer, dtype=into.dtype).view(into.shape))


@functools.cache
def _folder() -> Path:
    """Where the compiler's output is kept: a name for everything that goes into it."""
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + "\n".join(flags()).encode())
    sources = [path for part in ("core", "cpu") for path in (ROOT / "csrc" / part).rglob("*.*")]
    for path in [*sorted(sources), ROOT / "tests" / "arm" / "calls.cpp"]:
        digest.update(path.name.encode() + path.read_bytes())
    return ROOT / "build" / "arm" / digest.hexdigest()[:16]


def _integers(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _dtype(tensor: Tensor | None) -> bytes:
    return _integers([-1 if tensor is None else _DTYPES[tensor.dtype]])


def _array(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return _dtype(None)
    elements = tensor.detach().contiguous().flatten().view(torch.uint8)
    return _dtype(tensor) + elements.numpy().tobytes()
