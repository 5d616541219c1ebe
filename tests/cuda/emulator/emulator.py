"""Drives a library of emulated kernels from Python: order of threads, arrays, errors, counts."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tests.cuda.emulator import build

Order = Literal["fifo", "lifo", "random"]
Side = Literal["end", "start"]


class KernelError(RuntimeError):
    """A launch that broke a rule; the text names kernel, block, thread, rule and source line."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Who runs when.

    Attributes:
        order: Of the blocks, and of the threads that could run.
        seed: Of all that is random.
        preempt_one_in: In the checked build, one in this many accesses to memory lets another
            thread go first; 0: none does.
    """

    order: Order = "fifo"
    seed: int = 0
    preempt_one_in: int = 0


FIFO = Schedule("fifo")
LIFO = Schedule("lifo")


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch, as it was requested; `launcher` is the signature of the launching function."""

    kernel: str
    launcher: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_bytes: int
    stream: int
    device: int


class _LaunchRecord(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("launcher", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("device", ctypes.c_int),
    )


class Emulator:
    """A loaded library.

    Args:
        path: What `build.library` returned.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        self.functions.emulated_take_failure.restype = ctypes.c_char_p
        self.functions.emulated_allocate.restype = ctypes.c_void_p
        self.functions.emulated_take_launch.restype = ctypes.c_bool
        self.functions.emulated_release.restype = ctypes.c_bool

    def set_schedule(self, schedule: Schedule) -> None:
        """Holds for every launch from here on."""
        orders = {"fifo": 0, "lifo": 1, "random": 2}
        self.functions.emulated_set_schedule(
            ctypes.c_int(orders[schedule.order]),
            ctypes.c_uint64(schedule.seed),
            ctypes.c_uint(schedule.preempt_one_in),
        )

    def set_multiprocessors(self, number: int) -> None:
        """How many each device says that it has, from here on."""
        self.functions.emulated_set_multiprocessors(ctypes.c_int(number))

    def take_launches(self) -> list[Launch]:
        """Returns the launches since they were last taken, oldest first."""
        launches = []
        record = _LaunchRecord()
        while self.functions.emulated_take_launch(ctypes.byref(record)):
            launches.append(
                Launch(
                    record.kernel.decode(),
                    record.launcher.decode(),
                    tuple(record.grid),
                    tuple(record.block),
                    record.dynamic_bytes,
                    record.stream,
                    record.device,
                )
            )
        return launches

    def check(self) -> None:
        """Raises what has failed since the last check; until then no further launch is run.

        Raises:
            KernelError: Something has.
        """
        if message := self.functions.emulated_take_failure():
            raise KernelError(self.explain(message.decode()))

    def explain(self, message: str) -> str:
        """A message of the library with source lines instead of addresses."""
        return build.symbolise(message, self.path)

    @contextlib.contextmanager
    def arrays(self, side: Side = "end") -> Iterator[Arrays]:
        """Room for arrays that end or start at memory that cannot be touched.

        Yields:
            What makes the arrays. They are gone with the context.

        Raises:
            KernelError: A kernel wrote beside an array; only where nothing else was raised.
        """
        arrays = Arrays(self, side)
        try:
            yield arrays
        except BaseException:
            arrays.release()
            raise
        if beside := arrays.release():
            raise KernelError(f"a kernel wrote beside {', '.join(beside)}")


def distinct(array: NDArray[Any]) -> NDArray[Any]:
    """A view with one element for every place in memory: along an axis of stride 0, the first."""
    return array[tuple(slice(None) if stride else slice(1) for stride in array.strides)]


class Arrays:
    """Guarded arrays; see `Emulator.arrays`."""

    def __init__(self, emulator: Emulator, side: Side) -> None:
        self._emulator = emulator
        self._side = side
        self._made: list[tuple[str, int, int]] = []

    def copy(self, source: ArrayLike, name: str = "an array") -> NDArray[Any]:
        """A guarded copy with the same strides; the gaps between elements are NaN.

        A vector load may go as far as the last element and no farther: memory ends there, or it
        starts at the first. It is aligned to 16 bytes if its size allows, else to one element.
        """
        array = np.asarray(source)
        low, high = byte_bounds(array)
        memory = self._memory(high - low if array.size else 0, array.itemsize, name)
        offset = array.__array_interface__["data"][0] - low if array.size else 0
        guarded: NDArray[Any] = np.ndarray(array.shape, array.dtype, memory, offset, array.strides)
        distinct(guarded)[...] = distinct(array)
        return guarded

    def empty(self, shape: Sequence[int], dtype: DTypeLike, name: str = "an array") -> NDArray[Any]:
        """A guarded array of NaN, or of -1 where it holds integers."""
        template = np.broadcast_to(np.zeros((), dtype), shape)
        memory = self._memory(template.size * template.itemsize, template.itemsize, name)
        return np.ndarray(shape, dtype, memory)

    def _memory(self, size: int, itemsize: int, name: str) -> memoryview:
        """Guarded bytes: 0xff, and 0 past the first 64 MiB, which are gaps between strides."""
        address = self._emulator.functions.emulated_allocate(
            ctypes.c_size_t(size),
            ctypes.c_size_t(16 if size % 16 == 0 else itemsize),
            ctypes.c_bool(self._side == "start"),
        )
        if not address:
            raise MemoryError(f"no memory for {name}, {size} bytes")
        self._made.append((name, address, size))
        memory = (ctypes.c_ubyte * size).from_address(address)
        ctypes.memset(address, 0xFF, min(size, 2**26))
        return memoryview(memory)

    def release(self) -> list[str]:
        """Gives the memory back and returns the names of arrays that were written beside."""
        release = self._emulator.functions.emulated_release
        beside = [name for name, address, _ in self._made if not release(ctypes.c_void_p(address))]
        self._made.clear()
        return beside
