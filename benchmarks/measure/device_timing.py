"""Times of calls on a device that works on its own: its time, and the time of handing over.

A GPU starts when it is told to and reports later. The device's time of a call is taken between two
events around many calls in a row; the host's is how long it takes to hand one call over while the
device is idle, which bounds small problems. On the CPU both are the same.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.measure.timing import Spread, spread

_BLOCK_SECONDS = 0.02
_MAX_CALLS = 200
_HOST_CALLS = 20
_FLUSHED_CALLS = 5
_CPU_FLUSH_BYTES = 64 << 20  # more than the last cache of most processors
_CYCLES = 2e9  # of a GPU, a second, at most
_MAX_SLEEP = 0.2


@dataclass(frozen=True)
class DeviceTime:
    """Seconds per call.

    Attributes:
        device: Work of the device, one call right after the other.
        flushed: The same for a call that finds nothing in the last cache.
        host: Until a call returns, the device idle.
        wall: Until the work of a single call is done.
        rounds: The device's samples.
    """

    device: Spread
    flushed: Spread
    host: Spread
    wall: Spread
    rounds: tuple[float, ...]


def time_calls(
    tasks: Mapping[str, Callable[[], object]], device: str, *, rounds: int
) -> dict[str, DeviceTime]:
    """Times every task once per round, in an order that rotates from round to round.

    Args:
        tasks: What to time, by name.
        device: "cuda" or "cpu".
        rounds: How often.

    Returns:
        The times of each task.
    """
    clock = _CudaClock() if device == "cuda" else _CpuClock()
    names = list(tasks)
    calls = {name: _calls(clock, tasks[name]) for name in names}
    blocks: dict[str, list[float]] = {name: [] for name in names}
    flushed: dict[str, list[float]] = {name: [] for name in names}
    hosts: dict[str, list[float]] = {name: [] for name in names}
    walls: dict[str, list[float]] = {name: [] for name in names}
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                host, wall = _single_calls(clock, tasks[name])
                blocks[name].append(clock.block(tasks[name], calls[name], host)[0])
                flushed[name].append(clock.flushed(tasks[name], host))
                hosts[name].append(host)
                walls[name].append(wall)
    finally:
        if was_collecting:
            gc.enable()
    return {
        name: DeviceTime(
            spread(blocks[name]),
            spread(flushed[name]),
            spread(hosts[name]),
            spread(walls[name]),
            tuple(blocks[name]),
        )
        for name in names
    }


class _CpuClock:
    def __init__(self) -> None:
        self._other = torch.zeros(_CPU_FLUSH_BYTES, dtype=torch.uint8)

    def wait(self) -> None:
        """The CPU is done when a call returns."""

    def block(self, run: Callable[[], object], calls: int, host: float) -> tuple[float, bool]:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls, True

    def flushed(self, run: Callable[[], object], host: float) -> float:
        self._other.add_(1)
        return self.block(run, 1, host)[0]


class _CudaClock:
    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._other = torch.zeros(2 * cache, dtype=torch.uint8, device="cuda")

    def wait(self) -> None:
        torch.cuda.synchronize()

    def block(self, run: Callable[[], object], calls: int, host: float) -> tuple[float, bool]:
        """Between two events; and whether all calls were handed over before the first began.

        The device is kept busy for longer than the host takes for that, `host` seconds each, so
        that it never waits for one. But what waits for the device must fit in its queue, of about
        a thousand launches: the host stands still where it is full.
        """
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        torch.cuda._sleep(int(_CYCLES * min(2 * host * calls, _MAX_SLEEP)))
        before.record()
        for _ in range(calls):
            run()
        after.record()
        ahead = not before.query()
        self.wait()
        return float(before.elapsed_time(after)) / 1e3 / calls, ahead

    def flushed(self, run: Callable[[], object], host: float) -> float:
        """Median of a few calls; before each, a buffer twice the L2 cache is written, untimed."""
        events = [
            tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(_FLUSHED_CALLS)
        ]
        self.wait()
        torch.cuda._sleep(int(_CYCLES * min(4 * host * len(events), _MAX_SLEEP)))
        for before, after in events:
            self._other.add_(1)
            before.record()
            run()
            after.record()
        self.wait()
        return statistics.median(
            float(before.elapsed_time(after)) / 1e3 for before, after in events
        )


def _calls(clock: _CpuClock | _CudaClock, run: Callable[[], object]) -> int:
    """Warms up, and chooses how many calls make a block: so many that the host stays ahead."""
    run()
    host, _ = _single_calls(clock, run)
    seconds, _ = clock.block(run, 1, host)
    calls = max(1, min(_MAX_CALLS, round(_BLOCK_SECONDS / max(seconds, 1e-9))))
    while calls > 1 and not clock.block(run, calls, host)[1]:
        calls //= 2
    return calls


def _single_calls(clock: _CpuClock | _CudaClock, run: Callable[[], object]) -> tuple[float, float]:
    """Medians over single calls: until one returns, and until its work is done."""
    hosts: list[float] = []
    walls: list[float] = []
    while len(hosts) < _HOST_CALLS and sum(walls) < _BLOCK_SECONDS:
        clock.wait()
        start = time.perf_counter()
        run()
        hosts.append(time.perf_counter() - start)
        clock.wait()
        walls.append(time.perf_counter() - start)
    return statistics.median(hosts), statistics.median(walls)
