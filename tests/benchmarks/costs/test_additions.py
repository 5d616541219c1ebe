"""The counts of what the CUDA backward adds to memory."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.costs import additions
from benchmarks.workloads import WORKLOADS, make_inputs


def test_counts_are_those_of_a_loop() -> None:
    workload = dataclasses.replace(WORKLOADS["tiny"], batch=2)
    inputs = make_inputs(workload, 0)
    shape = workload.spatial_shapes[0]
    direct, bins, samples = 0, {}, 0
    for b, q, m, k in itertools.product(*map(range, inputs.sampling_offsets.shape[:3]), range(4)):
        size = torch.tensor(shape[::-1])
        location = inputs.reference_points[b, q, 0] + inputs.sampling_offsets[b, q, m, 0, k] / size
        low = (location * size - 0.5).floor().long().tolist()
        inside = [
            sum(0 <= cell < size for cell in (at, at + 1))
            for at, size in zip(low, shape[::-1], strict=True)
        ]
        corners = inside[0] * inside[1] * inside[2]
        if corners:
            samples += 1
            direct += corners
            bins[(b, m, *low)] = corners
    sorted_in = additions.sort_into_bins(workload, inputs)
    assert (int(sorted_in.samples.sum()), len(sorted_in.samples)) == (samples, len(bins))
    assert sorted_in.number == 2 * 2 * 5 * 7 * 6  # batch rows, heads, cells + 1 on each axis
    found = additions.count(sorted_in, workload.head_dim)
    assert found.direct == direct * workload.head_dim
    runs = samples // 128 * 8
    assert found.by_bins == (sum(bins.values()) + runs) * workload.head_dim


def _bins(*samples: int) -> additions.Bins:
    """Bins of so many samples, two corners each, in images."""
    count = torch.tensor(samples)
    return additions.Bins(10, count, torch.full_like(count, 2), axes=2)


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 64, 65, 1000])
def test_sorting_takes_the_steps_of_the_kernel(samples: int) -> None:
    # The loops of order_few and order_many in csrc/cuda/binned/sort.cu, a turn of 32 lanes a step.
    steps, half = samples, 1
    if samples > 32:
        steps = 0
        while half < samples:
            step = half
            while step > 0:
                steps += len(range(0, samples, 32))
                step //= 2
            half *= 2
    assert additions.count_fixed_order(_bins(samples), 4).sorting == steps


def test_a_fixed_order_is_counted_bin_by_bin() -> None:
    found = additions.count_fixed_order(_bins(3, 70, 3, 32), head_dim=4)
    assert found.sorting == 3 + 3 * 28 + 3 + 32
    assert found.described == 1 + 3 + 1 + 1
    assert found.described_in_runs == 4  # 108 samples
    assert (found.moved, found.longest) == (4 * 2 * 4, 70)


def test_numbers_are_those_of_the_kernels() -> None:
    folder = Path(__file__).parents[3] / "csrc/cuda"
    plan = (folder / "binned/plan.h").read_text()
    assert f"kRunOfSamples = {additions._RUN};" in plan
    assert f"kSamplesPerBin = {additions._SAMPLES_PER_BIN};" in plan
    assert f"8 ? 16 : {additions._BATCH};" in (folder / "binned/lanes.cuh").read_text()


@pytest.mark.parametrize("options", [[], ["--deterministic"]])
def test_the_table(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["additions", "--workloads", "tiny", *options]) == 0
    header, line, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| tiny | ")
