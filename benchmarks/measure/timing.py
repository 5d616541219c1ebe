"""Times of calls: every task once per round, in an order that rotates, on one of two clocks.

On the CPU a call has done its work when it returns. A GPU works on its own: the time of the device
is taken between two events around many calls in a row, beside what the host takes to start one.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.measure.rows import Row
from benchmarks.measure.stats import ratios, shared, spread

_MIN_ROUNDS, _MAX_ROUNDS = 3, 25
_CPU_BLOCK_SECONDS = 0.1
_CUDA_BLOCK_SECONDS = 0.02
_REPLAY_BLOCK_SECONDS = 0.004
_MAX_CALLS = 200  # of a block on a GPU
_SINGLE_CALLS = 20
_FLUSHED_CALLS = 5
_REPLAY_HOST_SECONDS = 1e-5  # for the host to start a CUDA graph
_CYCLES = 2e9  # of a GPU, per second, at most
_MAX_SLEEP = 0.2

Samples = dict[str, list[float]]  # by figure: "seconds", and what else a clock gives


@dataclass(frozen=True)
class Task:
    """One thing to time."""

    name: str  # unique among the tasks timed together
    run: Callable[[], object]
    threads: int = 1  # of torch meanwhile
    may_sit_out: bool = True  # whether it may have fewer rounds than others, if it is slow


class CpuClock:
    """Calls a task again until `block_seconds` have passed; the sample is the mean.

    No call inside a round is discarded: a task starts on the caches that the one before it left.

    Args:
        block_seconds: The least that a sample takes.
        of_process: Seconds are those that this process had processors for, all its threads
            together: waiting for other work on the machine is no part of them.
    """

    def __init__(
        self, block_seconds: float = _CPU_BLOCK_SECONDS, *, of_process: bool = False
    ) -> None:
        self._block_seconds = block_seconds
        self._of_process = of_process

    def calls(self, tasks: Sequence[Task]) -> dict[str, int]:
        """Warms tasks up; how many calls of each make a sample."""
        return {task.name: self._calls(task) for task in tasks}

    def sample(self, task: Task, calls: int) -> dict[str, float]:
        """Seconds of a call; those of the process, "wall" beside them."""
        torch.set_num_threads(task.threads)
        run = task.run
        start, start_of_process = time.perf_counter(), time.process_time()
        for _ in range(calls):
            run()
        wall = (time.perf_counter() - start) / calls
        if not self._of_process:
            return {"seconds": wall}
        return {"seconds": (time.process_time() - start_of_process) / calls, "wall": wall}

    def _calls(self, task: Task) -> int:
        if self.sample(task, 1)["seconds"] > 5 * self._block_seconds:
            return 1
        calls = 1
        while (seconds := self.sample(task, calls)["seconds"]) * calls < self._block_seconds:
            calls = max(calls + 1, math.ceil(self._block_seconds / seconds))
        return calls


class CudaClock:
    """Times of the device and of the host.

    Args:
        replays: Tasks replay CUDA graphs, each as often as every other: the device's time is all
            there is to know, and what a block itself costs is the same for all.
    """

    def __init__(self, *, replays: bool = False) -> None:
        self._replays = replays
        self._block_seconds = _REPLAY_BLOCK_SECONDS if replays else _CUDA_BLOCK_SECONDS
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.zeros(2 * cache, dtype=torch.uint8, device="cuda")

    def calls(self, tasks: Sequence[Task]) -> dict[str, int]:
        """Warms tasks up; how many calls of each make a sample: few enough for the queue."""
        found = {task.name: self._calls(task.run) for task in tasks}
        return dict.fromkeys(found, min(found.values())) if self._replays else found

    def sample(self, task: Task, calls: int) -> dict[str, float]:
        """Seconds of a call.

        Returns:
            seconds: Of the device, one call right after the other.
            flushed: The same for a call that finds nothing in the L2 cache.
            host: Until a call returns, the device idle; it bounds small problems.
            wall: Until the work of a single call is done.
            Of replays only the first.
        """
        if self._replays:
            task.run()  # what the task before left in the caches is not counted
            return {"seconds": self._block(task.run, calls, _REPLAY_HOST_SECONDS)[0]}
        host, wall = self._single_calls(task.run)
        seconds, _ = self._block(task.run, calls, host)
        flushed = self._flushed(task.run, host)
        return {"seconds": seconds, "flushed": flushed, "host": host, "wall": wall}

    def _calls(self, run: Callable[[], object]) -> int:
        run()
        host, _ = self._single_calls(run)
        seconds, _ = self._block(run, 1, host)
        calls = max(1, min(_MAX_CALLS, round(self._block_seconds / max(seconds, 1e-9))))
        while calls > 1 and not self._block(run, calls, host)[1]:
            calls //= 2
        return calls

    def _block(self, run: Callable[[], object], calls: int, host: float) -> tuple[float, bool]:
        """Seconds of a call, and whether all were started before the device began.

        The device is kept busy for longer than the host takes to start them, `host` seconds each,
        so that it never waits for one. But they must fit in its queue, of about a thousand
        launches: the host waits where it is full.
        """
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(_CYCLES * min(2 * host * calls, _MAX_SLEEP)))
        before.record()
        for _ in range(calls):
            run()
        after.record()
        is_ahead = not before.query()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1e3 / calls, is_ahead

    def _flushed(self, run: Callable[[], object], host: float) -> float:
        """Median of a few calls; before each, a buffer twice the L2 cache is written, untimed."""
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_FLUSHED_CALLS)
        ]
        torch.cuda.synchronize()
        torch.cuda._sleep(int(_CYCLES * min(4 * host * len(events), _MAX_SLEEP)))
        for before, after in events:
            self._flush.add_(1)
            before.record()
            run()
            after.record()
        torch.cuda.synchronize()
        return statistics.median(
            float(before.elapsed_time(after)) / 1e3 for before, after in events
        )

    def _single_calls(self, run: Callable[[], object]) -> tuple[float, float]:
        """Medians over single calls: until one returns, and until its work is done."""
        hosts: list[float] = []
        walls: list[float] = []
        while len(hosts) < _SINGLE_CALLS and sum(walls) < _CUDA_BLOCK_SECONDS:
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            hosts.append(time.perf_counter() - start)
            torch.cuda.synchronize()
            walls.append(time.perf_counter() - start)
        return statistics.median(hosts), statistics.median(walls)


Clock = CpuClock | CudaClock


def clock_of(device: str, *, replays: bool = False) -> Clock:
    """The clock for calls on "cpu" or "cuda"; on the CPU a replay is a call as any other."""
    if device == "cuda":
        return CudaClock(replays=replays)
    return CpuClock(_REPLAY_BLOCK_SECONDS) if replays else CpuClock()


def interleave(
    tasks: Sequence[Task],
    clock: Clock | None = None,
    *,
    seconds: float = 0,
    rounds: int | None = None,
    at_least: int = _MIN_ROUNDS,
    slow_rounds: int | None = None,
) -> dict[str, Samples]:
    """Times every task once per round, in an order that rotates from round to round.

    Args:
        tasks: What to time; names must differ.
        clock: By default that of the CPU.
        seconds: The rounds take about this long, at most 25 of them.
        rounds: Exactly this many rounds instead.
        at_least: Rounds there are however long they take.
        slow_rounds: A task that has had this many rounds, and half of `seconds` for itself, sits
            out the others; None lets none sit out.

    Returns:
        Samples, one per round, by the task's name and figure; those of a task that sat out are of
        the first rounds.
    """
    clock = clock or CpuClock()
    threads_before = torch.get_num_threads()
    was_collecting = gc.isenabled()
    samples: dict[str, Samples] = {task.name: {"seconds": []} for task in tasks}
    if len(samples) != len(tasks):
        raise ValueError(f"task names must differ, got {[task.name for task in tasks]}")
    try:
        gc.collect()
        gc.disable()
        calls = clock.calls(tasks)
        start, done = time.perf_counter(), 0
        while not _is_enough(done, start, seconds, rounds, at_least):
            is_late = rounds is None and slow_rounds is not None and done >= slow_rounds
            turn = done % len(tasks)
            for task in (*tasks[turn:], *tasks[:turn]):
                own, count = samples[task.name], calls[task.name]
                if is_late and task.may_sit_out and sum(own["seconds"]) * count > seconds / 2:
                    continue
                for figure, sample in clock.sample(task, count).items():
                    own.setdefault(figure, []).append(sample)
            done += 1
    finally:
        torch.set_num_threads(threads_before)
        if was_collecting:
            gc.enable()
    return samples


def compare(
    tasks: Sequence[Task],
    clock: Clock | None = None,
    *,
    to: Mapping[str, str] | None = None,
    **pace: Any,
) -> Iterator[tuple[str, Row]]:
    """Times tasks in turn: each one's name, its times, and their ratio to another one's.

    Args:
        tasks: What to time; with none there is nothing to do.
        clock: By default that of the CPU.
        to: By a task's name that of the task it is compared with; by default the first.
        **pace: Of `interleave`.
    """
    if not tasks:
        return
    samples = interleave(tasks, clock, **pace)
    for task in tasks:
        first = to[task.name] if to else tasks[0].name
        figures = samples[task.name]
        own = figures["seconds"]
        ratio = spread(ratios(*shared(own, samples[first]["seconds"])))
        row = {figure: asdict(spread(each)) for figure, each in figures.items()}
        yield task.name, {**row, "rounds": own, "ratio": {"to": first, **asdict(ratio)}}


def _is_enough(done: int, start: float, seconds: float, rounds: int | None, at_least: int) -> bool:
    if rounds is not None or done < at_least:
        return done >= (rounds or at_least)
    elapsed = time.perf_counter() - start
    return done >= _MAX_ROUNDS or elapsed * (done + 1) / done > seconds
