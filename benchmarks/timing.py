"""Times of calls: interleaved rounds, medians, quartiles, ratios."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_MIN_ROUNDS = 3
_MAX_ROUNDS = 25
_BLOCK_SECONDS = 0.1


@dataclass(frozen=True)
class Task:
    """One thing to time.

    Attributes:
        name: Unique among the tasks timed together.
        run: Does the work once.
        threads: What `torch.set_num_threads` is set to meanwhile.
    """

    name: str
    run: Callable[[], object]
    threads: int


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio per round: both were measured within moments of each other."""
    return [n / d for n, d in zip(numerators, denominators, strict=True)]


def interleave(
    tasks: Sequence[Task], *, budget_seconds: float, rounds: int | None = None
) -> dict[str, list[float]]:
    """Times every task once per round, in an order that rotates from round to round.

    A task is called at least once per round, and again until 0.1 s have passed; the sample is the
    mean of these calls. Every task runs once before anything is timed. No call inside a round is
    thrown away: each task starts on the caches that the one before it left.

    Args:
        tasks: What to time; names must differ.
        budget_seconds: The rounds take about this long, at least 3 and at most 25 of them.
        rounds: Exactly this many rounds instead.

    Returns:
        Seconds per call, one sample per round, by the task's name.
    """
    threads_before = torch.get_num_threads()
    was_collecting = gc.isenabled()
    samples: dict[str, list[float]] = {task.name: [] for task in tasks}
    if len(samples) != len(tasks):
        raise ValueError(f"task names must differ, got {[task.name for task in tasks]}")
    try:
        gc.collect()
        gc.disable()
        calls = {task.name: _calls_per_block(task) for task in tasks}
        start = time.perf_counter()
        while not _is_enough(len(samples[tasks[0].name]), start, budget_seconds, rounds):
            turn = len(samples[tasks[0].name]) % len(tasks)
            for task in (*tasks[turn:], *tasks[:turn]):
                samples[task.name].append(_time_block(task, calls[task.name]))
    finally:
        torch.set_num_threads(threads_before)
        if was_collecting:
            gc.enable()
    return samples


def _is_enough(done: int, start: float, budget_seconds: float, rounds: int | None) -> bool:
    if rounds is not None:
        return done >= rounds
    if done < _MIN_ROUNDS:
        return False
    elapsed = time.perf_counter() - start
    return done >= _MAX_ROUNDS or elapsed * (done + 1) / done > budget_seconds


def _calls_per_block(task: Task) -> int:
    """Warms the task up, and raises the calls until a block is long enough to trust."""
    if _time_block(task, 1) > 5 * _BLOCK_SECONDS:
        return 1
    calls = 1
    while (seconds := _time_block(task, calls)) * calls < _BLOCK_SECONDS:
        calls = max(calls + 1, math.ceil(_BLOCK_SECONDS / seconds))
    return calls


def _time_block(task: Task, calls: int) -> float:
    torch.set_num_threads(task.threads)
    run = task.run
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
