"""Planted faults: each must be caught by the check that it is for, and without it by none.

The kernels are those of tests/cuda/emulator/faults.cu.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest

from tests.cuda.emulator import build
from tests.cuda.emulator.emulator import Emulator, KernelError, Order, Schedule, Side

SOURCE = build.HERE / "faults.cu"
ORDERS: tuple[Order, ...] = ("fifo", "lifo", "random")
SIDES: tuple[Side, ...] = ("end", "start")

# What the emulator itself says, in every build.
RULES = {
    "read_past_end": r"illegal address: byte 512 of an array of 512 bytes, at \S+faults\.cu:\d+",
    "write_past_end": r"illegal address: byte 512 of an array of 512 bytes",
    "read_past_shared": r"thread \(63, 0, 0\): illegal address: byte 256 of an array of 256",
    "write_past_dynamic_shared": r"illegal address: byte 256 of an array of 256 bytes",
    "misaligned_atomic": r"misaligned atomic operation on 8 bytes",
    "endless_recursion": r"stack overflow",
    "divergent_shuffle": r"lanes of one warp meet in different warp operations",
    "source_lane_elsewhere": r"shuffle reads lane 20, which does not take part",
    "source_lane_ended": r"shuffle reads lane 3, which does not take part",
    "mask_without_caller": r"mask 0000ffff lacks the calling lane \d+",
    "different_masks": r"lanes of one warp meet in different warp operations",
    "odd_width": r"shuffle width must be a power of two of at most 32, got 12",
    "divergent_barrier": r"divergent __syncthreads: here \S+faults\.cu:\d+, other threads",
    "barrier_of_some": r"deadlock: thread \(0, 0, 0\) waits in __syncthreads at \S+faults\.cu",
    "too_much_static_shared": r"49156 bytes of shared memory",
}
# What the checked build says besides, which sees every access to memory and undefined behaviour.
CHECKS = {
    "missing_barrier": r"race: \w+ shared memory .* that thread \(\d+, 0, 0\) \w+, at",
    "missing_syncwarp": r"race: \w+ shared memory .* no barrier between",
    "shuffle_as_barrier": r"race: \w+ shared memory .* no barrier between",
    "plain_add": r"race: \w+ global memory .* that thread \(\d+, 0, 0\) \w+, at",
    "plain_add_of_blocks": r"race: \w+ global memory .* that another block \w+, at",
    "read_among_atomics": r"race: (atomically changes|reads) shared memory .* no barrier between",
    "read_before_start": r"illegal address: byte -4 of an array of 512 bytes",
    "unwritten_shared": r"thread \(5, 0, 0\): reads shared memory .* no thread .* has written",
    "misaligned_load": r"misaligned address .* 'const struct float4', which needs 16 bytes",
    "another_threads_local_memory": r"reads another thread's local memory",
    "index_past_local_array": r"index out of bounds, at \S+faults\.cu:\d+",
    "signed_overflow": r"signed overflow, at \S+faults\.cu:\d+",
    "shift_too_far": r"shift too far, at \S+faults\.cu:\d+",
}
FAULTS = RULES | CHECKS


@functools.cache
def _load(variant: build.Variant) -> Emulator:
    return Emulator(build.library([SOURCE], variant))


def _run(emulator: Emulator, fault: str, *, planted: bool, side: Side = "end") -> list[float]:
    """Runs a kernel on the numbers from 1 to 128 and returns what it made of them."""
    with emulator.arrays(side) as arrays:
        data = arrays.copy(np.arange(1, 129, dtype=np.float32))
        address = ctypes.c_void_p(data.ctypes.data)
        emulator.functions.run_fault(fault.encode(), ctypes.c_bool(planted), address)
        emulator.check()
        return [float(x) for x in data]


def test_the_table_is_whole() -> None:
    name = _load(build.PLAIN).functions.fault_name
    name.restype = ctypes.c_char_p
    names = iter(lambda: name(len(seen)), None)
    seen: list[str] = []
    for each in names:
        seen.append(each.decode())
    assert sorted(seen) == sorted(FAULTS)


@pytest.mark.parametrize("fault", RULES)
def test_rules_are_always_checked(fault: str) -> None:
    with pytest.raises(KernelError, match=RULES[fault]):
        _run(_load(build.PLAIN), fault, planted=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_checked_build_sees_every_fault(fault: str, order: Order) -> None:
    emulator = _load(build.CHECKED)
    emulator.set_schedule(Schedule(order))
    with pytest.raises(KernelError, match=FAULTS[fault]):
        _run(emulator, fault, planted=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_without_the_fault_nothing_is_said(fault: str) -> None:
    results = []
    for order in ORDERS:
        for variant in (build.PLAIN, build.CHECKED):
            emulator = _load(variant)
            emulator.set_schedule(Schedule(order, seed=1, preempt_one_in=3))
            results += [_run(emulator, fault, planted=False, side=s) for s in SIDES]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("fault", "side", "message"),
    [
        ("read_before_start", "start", "byte -4 of an array of 512 bytes"),
        ("write_past_end", "start", "wrote beside an array"),
    ],
)
def test_guards_on_either_side(fault: str, side: Side, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        _run(_load(build.PLAIN), fault, planted=True, side=side)


def test_a_missing_barrier_shows_in_the_numbers_too() -> None:
    emulator = _load(build.PLAIN)
    emulator.set_schedule(Schedule())
    right = _run(emulator, "missing_barrier", planted=False)
    assert _run(emulator, "missing_barrier", planted=True) != right


def test_after_a_failure_nothing_runs_until_it_is_taken() -> None:
    emulator = _load(build.PLAIN)
    data = np.ones(128, np.float32)
    address = ctypes.c_void_p(data.ctypes.data)
    for planted in (True, False):
        error = emulator.functions.run_fault(b"odd_width", ctypes.c_bool(planted), address)
        assert error == 719  # cudaErrorLaunchFailure
    with pytest.raises(KernelError, match="got 12"):
        emulator.check()
    assert emulator.functions.run_fault(b"odd_width", ctypes.c_bool(False), address) == 0


def test_the_next_launch_is_a_fresh_one() -> None:
    emulator = _load(build.CHECKED)
    emulator.set_schedule(Schedule())
    for fault in ("barrier_of_some", "plain_add", "endless_recursion"):
        with pytest.raises(KernelError):
            _run(emulator, fault, planted=True)
        _run(emulator, fault, planted=False)
