"""The emulator of CUDA kernels, every operation tested against its definition."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda.emulator import build
from tests.cuda.emulator.emulator import Emulator, KernelError, Schedule

WARP = 32
SCHEDULES = {
    "fifo": Schedule("fifo"),
    "lifo": Schedule("lifo"),
    "random": Schedule("random", seed=3),
    "preempted": Schedule("random", seed=5, preempt_one_in=3),
}
VARIANTS = {"plain": build.PLAIN, "checked": build.CHECKED, "portable": build.PORTABLE}


@functools.cache
def _load(variant: str) -> Emulator:
    return Emulator(build.library([build.HERE / "toys.cu"], VARIANTS[variant]))


@pytest.fixture(
    params=["plain-fifo", "plain-lifo", "plain-random", "portable-fifo", "checked-preempted"]
)
def toys(request: pytest.FixtureRequest) -> Emulator:
    """The kernels of toys.cu, under several orders; preemption needs the checked build."""
    variant, schedule = request.param.split("-")
    emulator = _load(variant)
    emulator.set_schedule(SCHEDULES[schedule])
    return emulator


def _call(emulator: Emulator, function: str, *arguments: Any) -> int:
    """Calls an entry point: arrays by address, and ints, bools and bytes as they are."""
    words = [
        ctypes.c_void_p(word.ctypes.data) if isinstance(word, np.ndarray) else word
        for word in arguments
    ]
    return int(emulator.functions[function](*words))


def _run(emulator: Emulator, function: str, *arguments: Any) -> list[NDArray[Any]]:
    """Calls an entry point on guarded copies of the arrays, returns them as it left them."""
    with emulator.arrays() as arrays:
        words = [arrays.copy(w) if isinstance(w, np.ndarray) else w for w in arguments]
        _call(emulator, function, *words)
        emulator.check()
        return [word.copy() for word in words if isinstance(word, np.ndarray)]


# -- who am I ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((3, 2, 2), (5, 3, 2)),
        ((2, 1, 1), (33, 1, 1)),
        ((1, 1, 1), (16, 8, 8)),
    ],
)
def test_every_thread_runs_once(
    toys: Emulator, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    # Rows of (block x, y, z, thread x, y, z), the last axes of both running slowest.
    z_first = [
        (*reversed(b), *reversed(t))
        for b in np.ndindex(*grid[::-1])
        for t in np.ndindex(*block[::-1])
    ]
    out, *_ = _run(
        toys,
        "indices",
        np.full((len(z_first), 6), -1, np.int32),
        np.array(grid, np.int32),
        np.array(block, np.int32),
    )
    np.testing.assert_array_equal(out, z_first)


def test_orders_differ_and_repeat() -> None:
    def trace(schedule: Schedule) -> list[float]:
        # float32 sums depend on their order.
        emulator = _load("checked")
        emulator.set_schedule(schedule)
        values = np.random.default_rng(0).normal(size=64 * 4).astype(np.float32)
        return [
            float(_run(emulator, "add", b"float32", values, np.zeros(1, np.float32), 4, 64)[1][0])
            for _ in range(2)
        ]

    fifo, lifo = trace(SCHEDULES["fifo"]), trace(SCHEDULES["lifo"])
    assert fifo[0] == fifo[1] != lifo[0]
    assert fifo[0] != trace(Schedule("fifo", preempt_one_in=3))[0]
    assert trace(SCHEDULES["random"]) == trace(SCHEDULES["random"])
    assert len({x for seed in range(4) for x in trace(Schedule("random", seed))}) > 2


# -- warps ---------------------------------------------------------------------------------------

SHUFFLES = ("index", "up", "down", "xor")


def _source(kind: str, lane: int, argument: int, width: int) -> int:
    """The lane that `lane` reads, after the definitions of CUDA's programming guide."""
    first = lane // width * width
    if kind == "index":
        return first + argument % width
    if kind == "up":
        return lane - argument if lane - argument >= first else lane
    if kind == "down":
        return lane + argument if lane + argument < first + width else lane
    return lane ^ argument if lane ^ argument < first + width else lane


@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", SHUFFLES)
@pytest.mark.parametrize("dtype", ["u2", "i4", "f8", "f4x4"])
def test_shuffles(toys: Emulator, dtype: str, kind: str, width: int) -> None:
    parts = 4 if dtype.endswith("x4") else 1
    values = np.arange(WARP * parts).reshape(WARP, parts).astype(dtype.split("x")[0])
    for arguments in (
        np.full(WARP, 1),
        np.full(WARP, 5),
        np.arange(WARP) * 7 % WARP,
        np.arange(WARP) % 3,
    ):
        *_, out = _run(
            toys,
            "shuffle",
            dtype.encode(),
            SHUFFLES.index(kind),
            values,
            arguments.astype(np.int32),
            width,
            np.zeros_like(values),
        )
        want = [values[_source(kind, i, int(arguments[i]), width)] for i in range(WARP)]
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("others", ["wait", "end"])
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x80000001, 0x00000400])
def test_ballots(toys: Emulator, mask: int, others: str) -> None:
    values = (np.arange(WARP) * 37 % 41 - 9).astype(np.int32)
    lanes = [lane for lane in range(WARP) if mask >> lane & 1]
    out = np.full(WARP, 77, np.uint32)
    *_, out = _run(toys, "votes", ctypes.c_uint(mask), others == "end", WARP, values, out)
    assert (out[lanes] == sum(1 << lane for lane in lanes if values[lane] > 0)).all()
    assert (np.delete(out, lanes) == 77).all()


def test_a_last_warp_may_be_partial(toys: Emulator) -> None:
    values = np.arange(20, dtype=np.int32) - 3
    out = np.zeros(20, np.uint32)
    *_, out = _run(toys, "votes", ctypes.c_uint(0xFFFFFFFF), False, 20, values, out)
    assert (out == sum(1 << lane for lane in range(20) if values[lane] > 0)).all()


# -- blocks --------------------------------------------------------------------------------------


def test_shared_memory(toys: Emulator) -> None:
    values = np.arange(5 * 96, dtype=np.float32)
    toys.take_launches()
    _, out = _run(toys, "reverse", 5, values, np.zeros_like(values))
    np.testing.assert_array_equal(out, 2 * values)
    (launch,) = toys.take_launches()
    assert (launch.grid, launch.block) == ((5, 1, 1), (96, 1, 1))
    assert (launch.dynamic_bytes, launch.stream, launch.device) == (96 * 8, 8, 0)
    assert launch.kernel == "reverse_twice<96>"
    assert "reverse" in launch.launcher


def test_shared_memory_is_nan_in_every_block() -> None:
    emulator = _load("plain")
    (out,) = _run(emulator, "unwritten", 3, np.zeros((3, 32), np.float32))
    assert np.isnan(out).all()


def test_sums_of_blocks(toys: Emulator) -> None:
    values = np.arange(3 * 256, dtype=np.float32)
    _, out = _run(toys, "warp_sums", 3, 256, values, np.zeros(3, np.float32))
    np.testing.assert_array_equal(out, values.reshape(3, 256).sum(1))


# -- atomics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["int32", "uint32", "uint64", "float32", "float64", "float32x2", "float32x4"]
)
def test_atomic_add(toys: Emulator, dtype: str) -> None:
    scalar, _, parts = dtype.partition("x")
    values = (np.arange(3 * 64 * int(parts or 1)) % 5).astype(scalar).reshape(3 * 64, -1)
    start = np.full(values.shape[1], 2, scalar)
    _, out = _run(toys, "add", dtype.encode(), values, start, 3, 64)
    np.testing.assert_array_equal(out, 2 + values.sum(0))


# -- the runtime ---------------------------------------------------------------------------------


def test_runtime() -> None:
    emulator = _load("plain")
    for multiprocessors in (132, 4):
        emulator.set_multiprocessors(multiprocessors)
        (out,) = _run(emulator, "runtime", np.full(7, -1, np.int32))
        assert out.tolist() == [2, 1, 1, 1, 1, multiprocessors, 1]


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_impossible_launches(blocks: int, threads: int) -> None:
    emulator = _load("plain")
    error = _call(emulator, "impossible_launch", blocks, threads)
    assert error == 9  # cudaErrorInvalidConfiguration
    with pytest.raises(KernelError, match=rf"read_unwritten: impossible launch: grid \({blocks}, "):
        emulator.check()


def test_much_dynamic_shared_memory_must_be_asked_for() -> None:
    emulator = _load("plain")
    assert _call(emulator, "large_shared", 64 << 10, False) == 9
    with pytest.raises(KernelError, match="65536 bytes of dynamic shared memory, of which 49152"):
        emulator.check()
    assert _call(emulator, "large_shared", 64 << 10, True) == 0
    emulator.check()
    assert _call(emulator, "large_shared", 228 << 10, True) == 1  # cudaErrorInvalidValue
