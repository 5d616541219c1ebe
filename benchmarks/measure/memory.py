"""Peak memory of a call: of the process, and of the tensors that are alive.

The native core and oneDNN allocate outside torch's allocator, so of the process what counts is what
the operating system sees: the peak of the resident set during the call, less the resident set just
before it. That includes the result, everything kept for backward, all gradients, and all scratch.
Of live tensors, weights, inputs and scratch of kernels are no part.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a process that runs a model without torch measures its memory too
    from torch import nn

_SAMPLING_SECONDS = 0.0005
# Of a process whose peak is measured. glibc raises the size from which a block is mapped, and given
# back when freed, as blocks are freed. A fixed size keeps freed blocks from being reused without
# the peak showing it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Peak:
    """What one call added to the resident set at its peak.

    Attributes:
        extra_bytes: Peak resident set during the call less the one before it.
        method: "VmHWM", the system's own high-water mark, reset before the call; or "sampled"
            every half millisecond where the mark cannot be reset, which may miss a short peak.
    """

    extra_bytes: int
    method: str


def peak_of(call: Callable[[], object]) -> Peak:
    """Peak extra resident memory of `call`, in this process.

    Raises:
        RuntimeError: This system has no /proc.
    """
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
    """Reads the resident set from a second thread while the call runs."""

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


def allocated(call: Callable[[], object]) -> int:
    """Most bytes that PyTorch's allocator of the current GPU holds in a call, less those before."""
    import torch

    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class PartMemory:
    """Bytes of live tensors in the forward pass of one part of a model.

    Attributes:
        peak: Most bytes alive at a time while it runs, less those alive before.
        kept: Alive after it, likewise: its result, and in training what its backward needs. Of a
            part that runs several times the sum.
    """

    peak: int = 0
    kept: int = 0


def live_tensors(
    call: Callable[[], object], parts: Mapping[str, Sequence[nn.Module]]
) -> tuple[int, dict[str, PartMemory]]:
    """The peak of a call, and what each part of a model adds that ran in it.

    Args:
        call: What is run, once.
        parts: Modules by the name of their part; none holds another.
    """
    from defvis.training.memory import LiveStorages

    peak, found = 0, dict.fromkeys(parts, PartMemory())
    before: list[int] = []
    live = LiveStorages()

    def begin(*_: Any) -> None:
        nonlocal peak
        peak = max(peak, live.peak)
        before.append(live.bytes)
        live.peak = live.bytes

    def end(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            start, known = before.pop(), found[name]
            added = max(known.peak, live.peak - start)
            found[name] = PartMemory(added, known.kept + live.bytes - start)

        return hook

    handles = [
        handle
        for name, modules in parts.items()
        for module in modules
        for handle in (
            module.register_forward_pre_hook(begin),
            module.register_forward_hook(end(name)),
        )
    ]
    try:
        with live:
            call()
    finally:
        for handle in handles:
            handle.remove()
    return max(peak, live.peak), found
