"""Times of calls on both clocks, and the peak of their memory."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import metrics
from benchmarks.measure import isolated, memory, timing
from benchmarks.measure.stats import Spread, ratios, shared, spread
from benchmarks.measure.timing import CpuClock, CudaClock, Task, compare, interleave
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS

TINY = WORKLOADS["tiny"]
SHORT = CpuClock(block_seconds=0.01)

# -- the CPU's clock ---------------------------------------------------------------------------


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3]) == Spread(median=3, q1=2, q3=4)
    assert spread([7]) == Spread(7, 7, 7)


def test_ratios_are_taken_per_round() -> None:
    """A machine that slows down between rounds changes the times, not the ratio."""
    ours, theirs = [1.0, 10.0, 2.0], [3.0, 30.0, 6.0]
    assert ratios(theirs, ours) == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios(theirs, ours[:2])


def _noting(order: list[str], seconds: float) -> list[Task]:
    def task(name: str) -> Task:
        return Task(name, lambda: (order.append(name), time.sleep(seconds)))

    return [task("a"), task("b")]


def test_rounds_interleave_and_rotate() -> None:
    order: list[str] = []
    samples = interleave(_noting(order, 0.06), SHORT, rounds=2)  # one call each: longer than blocks
    assert "".join(order)[-4:] == "abba"
    assert {name: len(own["seconds"]) for name, own in samples.items()} == {"a": 2, "b": 2}
    assert all(0.05 < each < 0.5 for own in samples.values() for each in own["seconds"])


def test_figures_are_those_of_the_rounds() -> None:
    tasks = [Task(name, lambda: time.sleep(1e-4)) for name in ("a", "b")]
    (_, ours), (_, theirs) = compare(tasks, SHORT, rounds=3)
    for row in (ours, theirs):
        assert row["seconds"] == dataclasses.asdict(spread(row["rounds"]))
    pairs = zip(theirs["rounds"], ours["rounds"], strict=True)
    assert theirs["ratio"]["median"] == sorted(other / own for other, own in pairs)[1]
    assert theirs["ratio"]["to"] == "a"
    (_, other), _ = compare(tasks, SHORT, rounds=3, to={"a": "b", "b": "b"})
    assert other["ratio"]["to"] == "b"


def test_the_time_of_the_process_leaves_out_waiting() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        time.sleep(0.1)

    ((_, row),) = compare([Task("a", work)], CpuClock(0.01, of_process=True), rounds=1)
    assert 0.02 <= row["seconds"]["median"] < 0.06
    assert row["wall"]["median"] >= 0.12


def test_a_slow_task_sits_out_and_the_others_go_on() -> None:
    slow = Task("slow", lambda: time.sleep(0.2))
    fast = Task("fast", lambda: time.sleep(0.01))

    def rounds(seconds: float, slow_rounds: int | None, may_sit_out: bool = True) -> list[int]:
        tasks = [dataclasses.replace(slow, may_sit_out=may_sit_out), fast]
        samples = interleave(tasks, SHORT, seconds=seconds, at_least=5, slow_rounds=slow_rounds)
        return [len(samples[name]["seconds"]) for name in ("slow", "fast")]

    few, many = rounds(0.7, 1)
    assert few == 2  # which take more than half of the time
    assert many >= 5
    assert rounds(0.7, 3)[0] == 3
    assert rounds(0.7, None) == [5, 5]
    assert rounds(0.7, 1, may_sit_out=False) == [5, 5]
    samples = interleave([slow], seconds=0, rounds=4, slow_rounds=1)
    assert len(samples["slow"]["seconds"]) == 4
    assert shared([1.0, 2.0, 3.0], [4.0, 5.0]) == [[1.0, 2.0], [4.0, 5.0]]


def test_short_calls_are_averaged_over_a_block() -> None:
    calls = itertools.count()
    samples = interleave([Task("short", lambda: next(calls))], rounds=1)
    assert next(calls) > 1000
    assert 0 < samples["short"]["seconds"][0] < 1e-4


def test_threads_are_set_for_the_task_and_put_back() -> None:
    seen = []
    before = torch.get_num_threads()
    run = Task("one", lambda: seen.append(torch.get_num_threads()), threads=before + 1)
    interleave([run], rounds=1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


# -- the GPU's clock, with a device that is not there ------------------------------------------


class Device:
    """Works on its own: calls put work into a queue, which is full at `room` of them."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.queued, self.host = room, 0, 0.0
        self.now, self.flushes = 0.0, 0
        self.is_cold = False

    def call(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.queued += 1
            self.now += seconds * (3 if self.is_cold else 1)
            self.is_cold = False

        return run

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def query(self) -> bool:
                return device.queued > device.room

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)

        def synchronize() -> None:
            device.queued = 0

        def add_(_: int) -> None:
            device.flushes, device.is_cold = device.flushes + 1, True
            device.now += 1.0  # which no event encloses

        for name, substitute in {
            "Event": Event,
            "synchronize": synchronize,
            "current_device": lambda: 0,
            "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1 << 20),
            "_sleep": lambda cycles: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, substitute, raising=False)
        monkeypatch.setattr(timing.torch, "zeros", lambda *_, **__: SimpleNamespace(add_=add_))


def test_times_of_the_device_and_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.install(monkeypatch)
    tasks = [Task("short", device.call(1e-4)), Task("long", device.call(4e-4))]
    clock = timing.clock_of("cuda")
    rows = dict(compare(tasks, clock, rounds=3))
    for name, seconds in (("short", 1e-4), ("long", 4e-4)):
        assert rows[name]["seconds"]["median"] == pytest.approx(seconds)
        assert rows[name]["flushed"]["median"] == pytest.approx(3 * seconds)
        assert 0 < rows[name]["host"]["median"] <= rows[name]["wall"]["median"] < 1e-3
    assert rows["long"]["ratio"]["median"] == pytest.approx(4)
    assert device.flushes == 2 * 3 * 5  # tasks, rounds, calls


@pytest.mark.parametrize("room", [1000, 64, 1])
def test_a_block_has_no_more_calls_than_the_queue_has_room_for(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(room)
    device.install(monkeypatch)
    calls = CudaClock().calls([Task("one", device.call(1e-6))])["one"]
    assert calls == {1000: 200, 64: 50, 1: 1}[room]


def test_replays_are_timed_alike_and_behind_one_that_fills_the_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device()
    device.install(monkeypatch)
    order: list[str] = []
    clock = timing.clock_of("cuda", replays=True)

    def task(name: str, seconds: float) -> Task:
        run = device.call(seconds)
        return Task(name, lambda: (order.append(name), run()))

    tasks = [task("a", 1e-3), task("b", 4e-4)]
    calls = clock.calls(tasks)
    assert calls == {"a": 4, "b": 4}
    order.clear()
    device.is_cold = True
    sample = clock.sample(tasks[0], calls["a"])
    assert sample == {"seconds": pytest.approx(1e-3)}
    assert "".join(order) == "a" * 5


# -- processes of their own --------------------------------------------------------------------


def test_a_fresh_process_answers_or_says_why_not(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "answering.py").write_text(
        "import time\n"
        "def count(to, then=''):\n"
        "    for number in range(to):\n"
        "        print('chatter')\n"
        "        yield {'number': number}\n"
        "    exec(then)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = [{"number": 0}, {"number": 1}]
    count = "answering:count"
    assert isolated.call(count, {"to": 2}) == (answers, "")
    found = isolated.call(count, {"to": 2, "then": "raise ValueError('no')"})
    assert found == (answers, "ValueError: no")
    found = isolated.call(count, {"to": 2, "then": "time.sleep(60)"}, seconds=3)
    assert found == (answers, "stopped after 3 s")
    assert isolated.call(count, {"to": 0, "then": "import os; os._exit(7)"}) == (
        [],
        "exit status 7",
    )


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
    peak = metrics.measure_peak(workload, "composite", mode, threads=1, seed=0)
    assert floor < peak.extra_bytes < 20 * floor


def test_memory_of_a_gpu_is_what_its_allocator_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    held, peak = 100, 5000

    def reset() -> None:
        nonlocal peak
        peak = held

    def call() -> None:
        nonlocal held, peak
        held, peak = 300, 700

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak)
    assert memory.allocated(call) == 600
    assert memory.allocated(lambda: None) == 0
