"""Times of calls, and the peak of their memory."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import pytest
import torch

from benchmarks.measure import memory, timing
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS

TINY = WORKLOADS["tiny"]

# -- times -------------------------------------------------------------------------------------


def test_spread_is_median_and_quartiles() -> None:
    assert timing.spread([5, 1, 4, 2, 3]) == timing.Spread(median=3, q1=2, q3=4)
    assert timing.spread([7]) == timing.Spread(7, 7, 7)


def test_ratios_are_taken_per_round() -> None:
    """A machine that slows down between rounds changes the times, not the ratio."""
    ours, theirs = [1.0, 10.0, 2.0], [3.0, 30.0, 6.0]
    assert timing.ratios(theirs, ours) == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        timing.ratios(theirs, ours[:2])


def test_rounds_interleave_and_rotate() -> None:
    order: list[str] = []

    def task(name: str) -> timing.Task:
        def run() -> None:
            order.append(name)
            time.sleep(0.11)  # longer than a block: one call each

        return timing.Task(name, run, threads=1)

    samples = timing.interleave([task("a"), task("b")], budget_seconds=0, rounds=2)
    assert "".join(order)[-4:] == "abba"
    assert {name: len(own) for name, own in samples.items()} == {"a": 2, "b": 2}
    assert all(0.1 < seconds < 0.5 for own in samples.values() for seconds in own)


def test_a_slow_task_sits_out_and_the_others_go_on() -> None:
    slow = timing.Task("slow", lambda: time.sleep(0.2), threads=1)
    fast = timing.Task("fast", lambda: time.sleep(0.01), threads=1)

    def rounds(
        budget_seconds: float, slow_rounds: int | None, may_sit_out: bool = True
    ) -> list[int]:
        samples = timing.interleave(
            [dataclasses.replace(slow, may_sit_out=may_sit_out), fast],
            budget_seconds=budget_seconds,
            at_least=5,
            slow_rounds=slow_rounds,
            block_seconds=0.01,
        )
        return [len(samples[name]) for name in ("slow", "fast")]

    few, many = rounds(0.7, 1)
    assert few == 2  # which take more than half of the time
    assert many >= 5
    assert rounds(0.7, 3)[0] == 3
    assert rounds(0.7, None) == [5, 5]
    assert rounds(0.7, 1, may_sit_out=False) == [5, 5]
    samples = timing.interleave([slow], budget_seconds=0, rounds=4, slow_rounds=1)
    assert len(samples["slow"]) == 4
    assert timing.shared([1.0, 2.0, 3.0], [4.0, 5.0]) == [[1.0, 2.0], [4.0, 5.0]]


def test_short_calls_are_averaged_over_a_block() -> None:
    calls = itertools.count()
    tasks = [timing.Task("short", lambda: next(calls), threads=1)]
    samples = timing.interleave(tasks, budget_seconds=0, rounds=1)
    assert next(calls) > 1000
    assert 0 < samples["short"][0] < 1e-4


def test_threads_are_set_for_the_task_and_put_back() -> None:
    seen = []
    before = torch.get_num_threads()
    run = timing.Task("one", lambda: seen.append(torch.get_num_threads()), threads=before + 1)
    timing.interleave([run], budget_seconds=0, rounds=1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


# -- memory ------------------------------------------------------------------------------------

BLOCK = 64 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("can_reset", [True, False], ids=["VmHWM", "sampled"])
def test_peak_sees_memory_that_is_freed_again(
    can_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_reset:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)

    def call() -> None:
        block = bytearray(b"x" * 1) * BLOCK
        time.sleep(0.05)
        del block

    peak = memory.peak_of(call)
    assert peak.method in (("VmHWM", "sampled") if can_reset else ("sampled",))
    assert peak.extra_bytes == pytest.approx(BLOCK, rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_in_a_fresh_process_holds_result_and_gradients() -> None:
    workload = dataclasses.replace(TINY, batch=64, num_points=16)
    prepared = IMPLEMENTATIONS["composite"].prepare(workload, 0)
    results = (prepared.grad_out, *prepared.inputs)
    floor = sum(tensor.numel() * tensor.element_size() for tensor in results)
    mode = "forward+backward"
    peak = memory.measure_peak(workload, "composite", mode, threads=1, seed=0)
    assert floor < peak.extra_bytes < 20 * floor
