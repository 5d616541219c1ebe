"""Peak extra memory of one call, measured in a process of its own.

The native core and oneDNN allocate outside torch's allocator, so what counts is what the operating
system sees: the peak of the resident set during the call, less the resident set just before it,
when inputs exist and the same kind of call has already run on a handful of cells (a compiled
variant: on the workload itself), so that libraries are loaded and threads are started. It includes
the result, everything kept for backward, all gradients, and all scratch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.subjects.base import Case
from benchmarks.subjects.blocks import BLOCKS
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import Workload

_ROOT = Path(__file__).parents[2]
_SAMPLING_SECONDS = 0.0005
# glibc raises the size from which a block is mapped, and given back when freed, as blocks are
# freed. A fixed size keeps freed blocks from being reused without the peak showing it.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclasses.dataclass(frozen=True)
class Peak:
    """What one call added to the resident set at its peak.

    Attributes:
        extra_bytes: Peak resident set during the call less the one before it.
        method: "VmHWM", the system's own high-water mark, reset before the call; or "sampled"
            every half millisecond where the mark cannot be reset, which may miss a short peak.
    """

    extra_bytes: int
    method: str


def measure_peak(
    workload: Workload,
    variant: str,
    mode: str,
    *,
    threads: int,
    seed: int,
    block: str | None = None,
) -> Peak:
    """Starts a fresh process and measures one call of `variant` in it.

    Args:
        workload: What it is called on.
        variant: Name in `IMPLEMENTATIONS`; of a block its kind.
        mode: One of `MODES`.
        threads: torch's threads.
        seed: Of the inputs.
        block: Name in `BLOCKS`: a module with its projections in place of an operator.

    Raises:
        RuntimeError: The process failed, or this system has no /proc.
    """
    request = {
        "workload": dataclasses.asdict(workload),
        "variant": variant,
        "block": block,
        "mode": mode,
        "threads": threads,
        "seed": seed,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        cwd=_ROOT,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"memory of {variant} could not be measured:\n{done.stderr}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def peak_of(call: Callable[[], object]) -> Peak:
    """Peak extra resident memory of `call`, in this process."""
    gc.collect()
    _give_freed_memory_back()
    if _reset_high_water_mark():
        before = _status_bytes("VmRSS")
        result = call()
        peak, method = _status_bytes("VmHWM"), "VmHWM"
    else:
        before = _status_bytes("VmRSS")
        with _Sampler() as sampler:
            result = call()
        peak, method = max(sampler.peak, _status_bytes("VmRSS")), "sampled"
    del result
    return Peak(max(0, peak - before), method)


class _Sampler:
    """Reads the resident set from a second thread for as long as the call runs."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLING_SECONDS):
            self.peak = max(self.peak, _status_bytes("VmRSS"))


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        raise RuntimeError("peak memory is read from /proc/self/status, not found") from error
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def _give_freed_memory_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _subject(name: str, block: str | None) -> tuple[Callable[[Workload, int], Case], bool]:
    """What prepares it, and whether its first call compiles."""
    if block is not None:
        return BLOCKS[block][name], False
    return IMPLEMENTATIONS[name].prepare, IMPLEMENTATIONS[name].is_compiled


def _main() -> None:
    request = json.loads(sys.argv[1])
    shapes = tuple(tuple(shape) for shape in request["workload"].pop("spatial_shapes"))
    workload = Workload(spatial_shapes=shapes, **request["workload"])
    torch.set_num_threads(request["threads"])
    prepare, is_compiled = _subject(request["variant"], request["block"])
    prepared = prepare(workload, request["seed"])
    little = prepare(workload.shrunk(), request["seed"])
    (prepared if is_compiled else little).call(request["mode"])()
    torch.ones(1 << 20).sum()  # starts the pool of threads, which the little problem may not
    peak = peak_of(prepared.call(request["mode"]))
    print(json.dumps(dataclasses.asdict(peak)))


if __name__ == "__main__":
    _main()
