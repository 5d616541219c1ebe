"""Times of calls as CUDA graphs replay them: the device's alone, whatever the host is doing.

Calls are timed in turn, in an order that rotates, so that a GPU that changes its clock changes all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.subjects.base import Case

Replay = Callable[[], object]

_WARM_UP = 3
_BLOCK_SECONDS = 0.004
_FEW_CALLS = 3
_MOST_CALLS = 100


def capture(prepared: Case, mode: str, device: str) -> Replay:
    """A call as a graph; on the CPU the call itself.

    Args:
        prepared: On the device.
        mode: Of `ALL_MODES`.
        device: "cuda" or "cpu".

    Returns:
        What runs it once.
    """
    if device == "cpu":
        return prepared.call(mode)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Autograd runs a backward on the stream where its forward ran, and adds to a leaf on the one
    # that first saw it: both are the one that captures, so the leaves are new.
    with torch.cuda.stream(stream):
        run = prepared.to(device).call(mode)
        for _ in range(_WARM_UP):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # The present stream is made current again even if capture fails.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, stream=stream),
    ):
        run()
    graph.replay()
    torch.cuda.synchronize()

    def replay() -> object:
        graph.replay()
        return run  # which keeps what the graph reads

    return replay


def time_replays(replays: Mapping[str, Replay], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call, one sample a round.

    Args:
        replays: What to time, by name.
        device: "cuda" or "cpu".
        rounds: How often.
    """
    block = _cuda_block if device == "cuda" else _cpu_block
    names = list(replays)
    for replay in replays.values():
        block(replay, _FEW_CALLS)  # the first ones are slow
    # As many for each, so that what a block itself costs is the same for all.
    seconds = min(block(replay, _FEW_CALLS) for replay in replays.values())
    calls = max(1, min(_MOST_CALLS, round(_BLOCK_SECONDS / seconds)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            samples[name].append(block(replays[name], calls))
    return samples


def _cuda_block(replay: Replay, calls: int) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()  # what the one before left in the caches is not counted
    before.record()
    for _ in range(calls):
        replay()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3 / calls


def _cpu_block(replay: Replay, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        replay()
    return (time.perf_counter() - start) / calls
