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
        may_sit_out: Whether it may have fewer rounds than others, if its calls are slow.
    """

    name: str
    run: Callable[[], object]
    threads: int
    may_sit_out: bool = True


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


def shared(*samples: Sequence[float]) -> list[Sequence[float]]:
    """Samples of the rounds in which all tasks had their turn."""
    rounds = min(map(len, samples))
    return [own[:rounds] for own in samples]


def interleave(
    tasks: Sequence[Task],
    *,
    budget_seconds: float,
    rounds: int | None = None,
    at_least: int = _MIN_ROUNDS,
    slow_rounds: int | None = None,
    block_seconds: float = _BLOCK_SECONDS,
) -> dict[str, list[float]]:
    """Times every task once per round, in an order that rotates from round to round.

    A task is called at least once per round, and again until 0.1 s (`block_seconds`) have passed;
    the sample is the mean of these calls. Every task runs once before anything is timed. No call
    inside a round is thrown away: each task starts on the caches that the one before it left.

    Args:
        tasks: What to time; names must differ.
        budget_seconds: The rounds take about this long, at most 25 of them.
        rounds: Exactly this many rounds instead.
        at_least: Rounds there are however long they take.
        slow_rounds: A task that has had so many rounds, and half the budget for itself, sits out
            the others; None lets none sit out.
        block_seconds: How long a sample lasts at least.

    Returns:
        Seconds per call, one sample per round, by the task's name; the samples of a task that sat
        out are those of the first rounds.
    """
    threads_before = torch.get_num_threads()
    was_collecting = gc.isenabled()
    samples: dict[str, list[float]] = {task.name: [] for task in tasks}
    if len(samples) != len(tasks):
        raise ValueError(f"task names must differ, got {[task.name for task in tasks]}")
    try:
        gc.collect()
        gc.disable()
        calls = {task.name: _calls_per_block(task, block_seconds) for task in tasks}
        start, done = time.perf_counter(), 0
        while not _is_enough(done, start, budget_seconds, rounds, at_least):
            turn = done % len(tasks)
            for task in (*tasks[turn:], *tasks[:turn]):
                own = samples[task.name]
                is_late = rounds is None and slow_rounds is not None and done >= slow_rounds
                if (
                    is_late
                    and task.may_sit_out
                    and sum(own) * calls[task.name] > budget_seconds / 2
                ):
                    continue
                own.append(_time_block(task, calls[task.name]))
            done += 1
    finally:
        torch.set_num_threads(threads_before)
        if was_collecting:
            gc.enable()
    return samples


def _is_enough(
    done: int, start: float, budget_seconds: float, rounds: int | None, at_least: int
) -> bool:
    if rounds is not None:
        return done >= rounds
    if done < at_least:
        return False
    elapsed = time.perf_counter() - start
    return done >= _MAX_ROUNDS or elapsed * (done + 1) / done > budget_seconds


def _calls_per_block(task: Task, block_seconds: float) -> int:
    """Warms the task up, and raises the calls until a block is long enough to trust."""
    if _time_block(task, 1) > 5 * block_seconds:
        return 1
    calls = 1
    while (seconds := _time_block(task, calls)) * calls < block_seconds:
        calls = max(calls + 1, math.ceil(block_seconds / seconds))
    return calls


def _time_block(task: Task, calls: int) -> float:
    torch.set_num_threads(task.threads)
    run = task.run
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
