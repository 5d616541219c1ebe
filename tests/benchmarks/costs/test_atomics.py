"""The counts of what the CUDA backward adds to memory."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.costs import atomics
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
    sorted_in = atomics.sort_into_bins(workload, inputs)
    assert (int(sorted_in.samples.sum()), len(sorted_in.samples)) == (samples, len(bins))
    found = atomics.count(sorted_in, workload.head_dim)
    assert found.direct == direct * workload.head_dim
    runs = samples // 128 * 8
    assert found.by_bins == (sum(bins.values()) + runs) * workload.head_dim


def test_numbers_are_those_of_the_kernels() -> None:
    folder = Path(__file__).parents[3] / "csrc/cuda"
    plan = (folder / "binned/plan.h").read_text()
    assert f"kSamplesPerWarp = {atomics._RUN};" in plan
    assert f"kSamplesPerBin = {atomics._SAMPLES_PER_BIN};" in plan


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costs", "atomic-adds", "--workloads", "tiny"]) == 0
    header, line, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| tiny | 2 | ")
