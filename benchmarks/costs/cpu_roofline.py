"""How fast caches and memory can be read: the roofline that the operator's gather is compared with.

A few lines of C++, compiled when they are needed, read memory with the widest vectors and do one
addition per vector. torch's own reductions do more than read.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import compiled

_SOURCE = Path(__file__).with_name("cpu_roofline.cpp")
_BURSTS = 60
_BURST_BYTES = 1 << 27  # streamed per thread and burst: about a millisecond
_DRAM_BURSTS = 10  # which take tens of milliseconds each
# Bytes per thread. Half of the cache, so that what else is read does not push the buffer out; and
# for the third level, some times the second level's usual size.
_CACHE_SHARE = 0.5
_USUAL_CACHES = {1: 32 << 10, 2: 1 << 20}
_L3_BYTES = 12 << 20
# Times the third level, as the STREAM benchmark has it: what is left there of one pass is little.
_DRAM_SHARE = 4
_USUAL_DRAM_BYTES = 256 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def stream_bandwidths(threads: int) -> dict[str, float]:
    """Bytes per second of all threads together, by where the buffers are that they stream."""
    return {
        name: _library().stream_bandwidth(
            ctypes.c_int64(size),
            threads,
            ctypes.c_int64(max(1, _BURST_BYTES // size)),
            _DRAM_BURSTS if name == "DRAM" else _BURSTS,
        )
        for name, size in stream_sizes().items()
    }


def stream_sizes() -> dict[str, int]:
    """Bytes of a thread's buffer, by where it is."""
    caches = _caches()
    l1, l2 = (
        int(caches.get(level, usual) * _CACHE_SHARE) for level, usual in _USUAL_CACHES.items()
    )
    # A system that states no third level may still have one.
    dram = _DRAM_SHARE * caches[3] if 3 in caches else _USUAL_DRAM_BYTES
    return {"L1": l1, "L2": l2, "L3": _L3_BYTES, "DRAM": dram}


def rows_bandwidth(rows: Tensor, table_rows: int, row_bytes: int, threads: int) -> float | None:
    """Bytes per second of all threads together, each reading the same rows of its own table.

    Args:
        rows: Numbers of the rows, in the order they are read; below 2^31.
        table_rows: Rows of the table.
        row_bytes: Bytes of a row.
        threads: How many read at once.

    Returns:
        None where a row is no whole number of vectors of 16, 32 or 64 bytes, or more than 64 of the
        widest that fit.
    """
    rows = rows.to(torch.int32).contiguous()
    sizes = map(ctypes.c_int64, (rows.numel(), table_rows, row_bytes))
    result: float = _library().rows_bandwidth(
        ctypes.c_void_p(rows.data_ptr()), *sizes, threads, _BURSTS
    )
    return result if result > 0 else None


def vector_bytes() -> int:
    """Width of the vectors the reader was compiled for."""
    return int(_library().vector_bytes())


@functools.cache
def _library() -> ctypes.CDLL:
    library = compiled.library(_SOURCE)
    library.stream_bandwidth.restype = library.rows_bandwidth.restype = ctypes.c_double
    return library


def _caches() -> dict[int, int]:
    """Bytes of core 0's data caches by level, of those that the system states."""
    sizes = {}
    for index in _CACHES.glob("index*"):
        read = {name: (index / name).read_text().strip() for name in ("level", "type", "size")}
        if read["type"] != "Instruction":
            sizes[int(read["level"])] = int(read["size"].removesuffix("K")) * 1024
    return sizes
