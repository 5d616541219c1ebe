"""Calls by several processes at once, as ranks or data loaders on one machine make them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import torch


def measure(
    run: Callable[[], object], *, processes: int, threads: int, seconds: float
) -> tuple[float, float]:
    """Forks processes that start together and call again and again.

    This process must not have used more than one thread: OpenMP's do not survive a fork.

    Args:
        run: What each calls, a few times before it counts.
        processes: How many.
        threads: torch's, in each.
        seconds: How long each goes on.

    Returns:
        Seconds of a call, the mean over the processes, and how many processors they kept busy
        together.

    Raises:
        EOFError: One of them died.
    """
    context = multiprocessing.get_context("fork")
    start = context.Barrier(processes)
    answers, children = [], []
    for _ in range(processes):
        answer, to = context.Pipe(duplex=False)
        child = context.Process(target=_call, args=(run, threads, seconds, start, to), daemon=True)
        child.start()
        to.close()  # a child that dies ends its pipe
        answers.append(answer)
        children.append(child)
    of_calls, busy = zip(*(answer.recv() for answer in answers), strict=True)
    for child in children:
        child.join()
    return sum(of_calls) / processes, sum(busy)


def _call(
    run: Callable[[], object], threads: int, seconds: float, start: Barrier, answer: Connection
) -> None:
    torch.set_num_threads(threads)
    for _ in range(2):
        run()
    start.wait()
    begin, begin_busy, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - begin < seconds:
        run()
        calls += 1
    elapsed = time.perf_counter() - begin
    answer.send((elapsed / calls, (time.process_time() - begin_busy) / elapsed))
