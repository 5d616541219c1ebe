"""What is read and added, and what caches and memory can give."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from benchmarks.costs import cpu_roofline, traffic
from benchmarks.measure import compiled
from benchmarks.workloads import WORKLOADS, Workload, make_inputs

TINY = WORKLOADS["tiny"]


def _rows_one_by_one(workload: Workload, inputs, head: int) -> list[int]:
    """The corner rows of a head, straight from the definition."""
    rows = []
    for query in range(workload.num_queries):
        start = 0
        for level, shape in enumerate(workload.spatial_shapes):
            for point in range(workload.num_points):
                reference = inputs.reference_points[0, query, level].tolist()
                offset = inputs.sampling_offsets[0, query, head, level, point].tolist()
                sizes = shape[::-1]
                lows = [
                    math.floor((r + o / n) * n - 0.5)
                    for r, o, n in zip(reference, offset, sizes, strict=True)
                ]
                for steps in itertools.product((0, 1), repeat=len(shape)):
                    cell = [low + step for low, step in zip(lows, steps, strict=True)]
                    if all(0 <= at < size for at, size in zip(cell, sizes, strict=True)):
                        row = 0
                        for at, size in zip(cell[::-1], shape, strict=True):
                            row = row * size + at
                        rows.append(start + row)
            start += math.prod(shape)
    return rows


@pytest.mark.parametrize(
    "shapes", [((4, 6, 5),), ((6, 7), (3, 4))], ids=["video", "two image levels"]
)
def test_traffic_counts_the_corners_that_exist(shapes: tuple[tuple[int, ...], ...]) -> None:
    workload = dataclasses.replace(TINY, spatial_shapes=shapes)
    inputs = make_inputs(workload, seed=0)
    count = 0
    for head in range(workload.num_heads):
        expected = _rows_one_by_one(workload, inputs, head)
        assert traffic.corner_rows(workload, inputs, 0, head).tolist() == expected
        count += len(expected)
    assert traffic.corner_bytes(workload, inputs) == count * workload.head_dim * 4


@pytest.mark.parametrize("by_bins", [False, True])
def test_added_numbers_are_those_of_a_loop(by_bins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "takes_bins", lambda workload: by_bins)
    workload = dataclasses.replace(TINY, batch=2)
    inputs = make_inputs(workload, 0)
    shape = workload.spatial_shapes[0]
    one_by_one, bins, samples = 0, {}, 0
    for b, q, m, k in itertools.product(*map(range, inputs.sampling_offsets.shape[:3]), range(4)):
        size = torch.tensor(shape[::-1])
        location = inputs.reference_points[b, q, 0] + inputs.sampling_offsets[b, q, m, 0, k] / size
        low = (location * size - 0.5).floor().long().tolist()
        corners = math.prod(
            sum(0 <= cell < size for cell in (at, at + 1))
            for at, size in zip(low, shape[::-1], strict=True)
        )
        if corners:
            samples += 1
            one_by_one += corners
            bins[(b, m, *low)] = corners
    counted = sum(bins.values()) + samples // 128 * 8 if by_bins else one_by_one
    how = "bin by bin" if by_bins else "one by one"
    assert traffic.added_numbers(workload, inputs) == (counted * workload.head_dim, how)


def test_numbers_are_those_of_the_kernels() -> None:
    plan = (Path(__file__).parents[3] / "csrc/cuda/binned/plan.h").read_text()
    assert f"kSamplesPerWarp = {traffic.SAMPLES_PER_WARP};" in plan
    assert f"kSamplesPerBin = {traffic.SAMPLES_PER_BIN};" in plan


@pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
def test_the_roofline_reads_rows_of_every_usual_size() -> None:
    rows = torch.randint(50, (1 << 16,))
    for head_dim, element in itertools.product((16, 32, 48, 64, 96, 128, 256), (2, 4)):
        speed = cpu_roofline.rows_bandwidth(rows, 50, head_dim * element, threads=1)
        assert speed is not None
        assert 1e8 < speed < 1e13
    assert cpu_roofline.rows_bandwidth(rows, 50, 20, threads=1) is None


def _state_caches(folder: Path, *caches: tuple[str, str, str]) -> None:
    """Writes level, type and size of caches as Linux does."""
    for number, cache in enumerate(caches):
        index = folder / f"index{number}"
        index.mkdir()
        for name, text in zip(("level", "type", "size"), cache, strict=True):
            (index / name).write_text(f"{text}\n")


def test_memory_is_streamed_beyond_the_last_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_roofline, "_CACHES", tmp_path)
    usual = {"L1": 16 << 10, "L2": 1 << 19, "L3": 12 << 20, "DRAM": 256 << 20}
    assert cpu_roofline.stream_sizes() == usual
    caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K")]
    _state_caches(tmp_path, *caches)
    assert cpu_roofline.stream_sizes() == {**usual, "L1": 24 << 10, "L2": 1 << 20}
    third = tmp_path / "with a third level"
    third.mkdir()
    _state_caches(third, *caches, ("3", "Unified", "266240K"))
    monkeypatch.setattr(cpu_roofline, "_CACHES", third)
    assert cpu_roofline.stream_sizes()["DRAM"] == 4 * (260 << 20)


@pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
def test_memory_is_slower_than_the_first_cache() -> None:
    speeds = cpu_roofline.stream_bandwidths(threads=1)
    assert list(speeds) == ["L1", "L2", "L3", "DRAM"]
    assert 1e8 < speeds["DRAM"] < speeds["L1"] < 1e13
