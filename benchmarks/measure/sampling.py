"""Where calls spend their processor time, by sampling: source lines of one library.

What is sampled runs as it is; a timer of each thread's processor time interrupts it some hundred
times a second (at the ticks of the system). Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import compiled

PERIOD = 1e-3  # seconds of processor time; the system rounds it up to its ticks


class Sample(NamedTuple):
    """Where a thread was.

    Attributes:
        address: The innermost one of its stack that is in the library, as the library's line table
            has it; None if there is none.
        callee: The file name of the library that was called there; "" if the code at the address
            itself ran.
    """

    address: int | None
    callee: str


Line = tuple[str, int]  # a file, and the number of a line in it

_SOURCE = Path(__file__).with_name("sampling.cpp")
_TOOLS = ("addr2line", "llvm-addr2line")
_LINE = re.compile(r"(.*):(\d+)(?: \(discriminator \d+\))?")


@contextlib.contextmanager
def sampled(library: Path) -> Iterator[list[Sample]]:
    """Samples all threads that exist by now, until the context ends.

    Args:
        library: A shared object that this process has loaded.

    Yields:
        A list that is filled at the end.

    Raises:
        OSError: The system has no such timers.
        RuntimeError: There is no C++ compiler, or the library is not loaded.
    """
    sampler = compiled.library(_SOURCE)
    sampler.take_samples.restype = ctypes.c_int64
    own = [each for each, path in _mappings() if path == str(library.resolve())]
    if not own:
        raise RuntimeError(f"{library.name} is not loaded")
    begin, end = ctypes.c_size_t(own[0].start), ctypes.c_size_t(own[-1].stop)
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    ids = (ctypes.c_int32 * len(threads))(*threads)
    period = ctypes.c_int64(round(PERIOD * 1e9))
    samples: list[Sample] = []
    if error := sampler.start(begin, end, ids, len(threads), period):
        raise OSError(error, f"no timers of threads: {os.strerror(error)}")
    try:
        yield samples
    finally:
        sampler.stop()
        first = ctypes.POINTER(_Sample)()
        count = sampler.take_samples(ctypes.byref(first))
        files = _mappings()
        for taken in first[:count]:
            is_inside = taken.offset >= 0
            callee = _file_at(taken.callee, files) if is_inside and taken.callee else ""
            samples.append(Sample(taken.offset if is_inside else None, callee))


class _Sample(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_int64), ("callee", ctypes.c_size_t))


def _mappings() -> list[tuple[range, str]]:
    """The files in the memory of this process, by address."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in addresses.split("-"))
        found.append((range(begin, end), path))
    return found


def _file_at(address: int, mappings: Iterable[tuple[range, str]]) -> str:
    return next((Path(path).name for each, path in mappings if address in each), "unknown")


def source_lines(library: Path, addresses: Iterable[int]) -> dict[int, list[Line]]:
    """The lines of source that addresses are from.

    Args:
        library: With a line table, as the compiler's option -g1 makes it.
        addresses: As samples have them.

    Returns:
        By address, the line, then the line in the caller that it was inlined into, and so on. Empty
        for an address whose line is unknown.

    Raises:
        RuntimeError: There is no addr2line.
    """
    tool = next(filter(None, map(shutil.which, _TOOLS)), None)
    if tool is None:
        raise RuntimeError("needs addr2line, which is part of binutils")
    # Without the names of functions: GNU addr2line takes the innermost from the symbol table.
    done = subprocess.run(
        [tool, "--exe", str(library), "--addresses", "--inlines"],
        input="".join(f"{address:#x}\n" for address in sorted(set(addresses))),
        capture_output=True,
        text=True,
        check=True,
    )
    lines: dict[int, list[Line]] = {}
    for text in done.stdout.splitlines():
        if text.startswith("0x"):
            found = lines.setdefault(int(text, 16), [])
        elif (match := _LINE.fullmatch(text)) and int(match[2]):  # line 0 is none
            found.append((match[1], int(match[2])))
    return lines
