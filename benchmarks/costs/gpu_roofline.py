"""What this GPU's caches and memory can give, to compare the kernels with: bytes and additions.

Rows are gathered at random from working sets that fit the L1 cache, the L2 cache and neither, 16
bytes a load as in the forward; ones are added to rows at random, spread over many or hot on few, as
in the backward. The results of the kernels in `gpu_roofline.cu` are checked before they are timed.
Copies are PyTorch's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import compiled
from benchmarks.measure.stats import spread
from benchmarks.measure.timing import CudaClock, Task, interleave

SOURCE = Path(__file__).with_name("gpu_roofline.cu")
ROW_BYTES = (64, 96, 128, 192)
NUMBERS = (1, 4)  # added by one instruction
_WARP = 32
_ADDED_ROW = 32  # numbers, of a row that is added to
_L1_BYTES = 64 << 10
_HOT_ROWS = 32
_MOST_MEMORY = 2 << 30
_BLOCKS = 2  # of a multiprocessor
_STEPS = 8  # of a check
_CALL_STEPS = 512  # of a timed call


class WrongResultError(RuntimeError):
    """A microbenchmark did something else than it is timed for."""


class Microbenchmark(NamedTuple):
    """Work of a known amount.

    Attributes:
        name: As it is reported.
        run: Does the work once.
        amount: Bytes moved or numbers added by that.
    """

    name: str
    run: Callable[[], object]
    amount: int


def gather_name(row_bytes: int, level: str) -> str:
    """What a gather is called in the results; `level` is "L1", "L2" or "DRAM"."""
    return f"gather of {row_bytes} bytes, {level}"


def addition_name(numbers: int, where: str) -> str:
    """What an addition is called in the results; `where` is "spread" or "hot"."""
    return f"addition of {numbers} at once, {where}"


def copy_name(level: str) -> str:
    """What a copy is called in the results; `level` is "L2" or "DRAM"."""
    return f"copy, {level}"


def measure(rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Checks and times all of them on the current GPU, one after the other.

    Args:
        rounds: How often each is timed.

    Yields:
        Its name, and bytes per second, read or read and written, or additions per second: median
        and quartiles.

    Raises:
        WrongResultError: A kernel's result was wrong.
        RuntimeError: There is no nvcc, or a launch failed.
    """
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    library = compiled.cuda_library(SOURCE, f"{properties.major}{properties.minor}")
    machine = Machine(library, _BLOCKS * properties.multi_processor_count, "cuda")
    cache = properties.L2_cache_size
    memory = min(_MOST_MEMORY, 16 * cache)
    makers = [
        functools.partial(machine.gather, row_bytes, level, size)
        for level, size in (("L1", _L1_BYTES), ("L2", cache // 4), ("DRAM", memory))
        for row_bytes in ROW_BYTES
    ]
    makers += [
        functools.partial(machine.add, numbers, where, rows)
        for where, rows in (("spread", cache // 4 // (4 * _ADDED_ROW)), ("hot", _HOT_ROWS))
        for numbers in NUMBERS
    ]
    copies = (("L2", cache // 8), ("DRAM", memory // 2))
    makers += [functools.partial(machine.copy, level, size) for level, size in copies]
    for make in makers:
        bench = make()
        task = Task(bench.name, bench.run)
        taken = spread(interleave([task], CudaClock(), rounds=rounds)[task.name]["seconds"])
        yield (
            bench.name,
            {
                "median": bench.amount / taken.median,
                "q1": bench.amount / taken.q3,
                "q3": bench.amount / taken.q1,
            },
        )


class Machine:
    """Makes microbenchmarks of a loaded library, each checked.

    Args:
        library: What `gpu_roofline.cu` compiles to.
        blocks: Of a launch.
        device: Of the tensors.
    """

    def __init__(self, library: ctypes.CDLL, blocks: int, device: str) -> None:
        self._library, self._blocks, self._device = library, blocks, device
        self._threads = blocks * int(library.threads_of_block())

    def gather(self, row_bytes: int, level: str, table_bytes: int) -> Microbenchmark:
        """Random rows of a table of about `table_bytes`."""
        rows, words = table_bytes // row_bytes, row_bytes // 4
        table = torch.arange(rows * words, dtype=torch.int32, device=self._device).view(rows, words)
        table *= -1640531535  # Knuth's, so that no sum is another's by chance
        out = torch.zeros(self._threads, dtype=torch.int32, device=self._device)

        def run(steps: int = _CALL_STEPS) -> None:
            self._call("gather_rows", table, rows, row_bytes, steps, out, self._blocks)

        lanes = words // 4 if row_bytes <= 96 else words // 8
        slots = _WARP // lanes  # rows that a warp reads at a time
        run(_STEPS)
        warps = torch.arange(0, self._threads, _WARP)
        seeds = (warps[:, None] + torch.arange(slots)).flatten()
        read = table[random_rows(seeds, rows, _STEPS).to(self._device)].long().sum(1)
        # [warp, slot, run, lane, word] to one number a lane
        by_lane = read.view(len(warps), slots, -1, lanes, 4).sum((2, 4)).flatten(1).int()
        expected = torch.nn.functional.pad(by_lane, (0, _WARP - slots * lanes))
        return self._checked(
            *(gather_name(row_bytes, level), run, len(seeds) * _CALL_STEPS * row_bytes),
            torch.equal(out.view_as(expected), expected),
        )

    def add(self, numbers: int, where: str, rows: int) -> Microbenchmark:
        """Ones added to random rows of 32 numbers, `numbers` by one instruction."""
        table = torch.zeros(rows, _ADDED_ROW, device=self._device)

        def run(steps: int = _CALL_STEPS) -> None:
            self._call("add_to_rows", table, rows, numbers, steps, self._blocks)

        run(_STEPS)
        seeds = torch.arange(self._threads * numbers // _ADDED_ROW)
        count = random_rows(seeds, rows, _STEPS).flatten().bincount(minlength=rows)
        return self._checked(
            *(addition_name(numbers, where), run, len(seeds) * _CALL_STEPS * _ADDED_ROW),
            torch.equal(table, count[:, None].expand(-1, _ADDED_ROW).to(table)),
        )

    def copy(self, level: str, size: int) -> Microbenchmark:
        """A buffer of `size` bytes into another; both sides count."""
        source = torch.ones(size, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        return Microbenchmark(copy_name(level), lambda: target.copy_(source), 2 * size)

    @staticmethod
    def _checked(name: str, run: Callable[[], None], amount: int, is_right: bool) -> Microbenchmark:
        if not is_right:
            raise WrongResultError(f"{name}: its sums are not those of the rows")
        return Microbenchmark(name, run, amount)

    def _call(self, function: str, *arguments: Any) -> None:
        words = [
            ctypes.c_void_p(word.data_ptr()) if isinstance(word, Tensor) else ctypes.c_int(word)
            for word in arguments
        ]
        stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else None
        if error := self._library[function](*words, ctypes.c_void_p(stream)):
            raise RuntimeError(f"{function} failed with CUDA's error {error}")


def random_rows(seeds: Tensor, rows: int, steps: int) -> Tensor:
    """[len(seeds), steps]: what `RandomRows` of gpu_roofline.cu makes of each seed."""
    state = seeds * 2654435761 % 2**32
    numbers = []
    for _ in range(steps):
        state = (state * 1664525 + 1013904223) % 2**32
        numbers.append(state * rows >> 32)
    return torch.stack(numbers, 1)
