"""The problems that are measured: their sizes and their tensors."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from benchmarks.costs.traffic import corner_bytes
from benchmarks.workloads import WORKLOADS, make_inputs

TINY = WORKLOADS["tiny"]


@pytest.mark.parametrize(
    ("name", "cells", "queries", "heads", "head_dim", "levels", "points"),
    [
        ("paper-encoder", 6120, 6120, 8, 48, 1, 32),
        ("paper-encoder-large", 24480, 24480, 8, 48, 1, 32),
        ("paper-decoder", 6120, 360, 8, 48, 1, 32),
        ("detr-encoder", 22223, 22223, 8, 32, 4, 4),
        ("detr-decoder", 22223, 300, 8, 32, 4, 4),
        ("bev-cross", 30_825, 10_000, 8, 32, 4, 8),
        ("four-elements", 1, 1, 1, 4, 1, 1),
    ],
)
def test_workload_has_its_published_sizes(
    name: str, cells: int, queries: int, heads: int, head_dim: int, levels: int, points: int
) -> None:
    workload = WORKLOADS[name]
    assert (workload.num_cells, workload.num_queries) == (cells, queries)
    assert (workload.num_heads, workload.head_dim) == (heads, head_dim)
    assert (len(workload.spatial_shapes), workload.num_points) == (levels, points)
    assert (workload.offset_spread, workload.batch, workload.dtype) == (2.0, 1, "float32")


def test_inputs_have_the_operators_shapes_and_dtypes() -> None:
    workload = dataclasses.replace(TINY, batch=2, dtype="bfloat16", num_object_queries=7)
    inputs = make_inputs(workload, seed=0)
    assert [list(tensor.shape) for tensor in inputs] == [
        [2, 120, 2, 16],
        [2, 7, 1, 3],
        [2, 7, 2, 1, 4, 3],
        [2, 7, 2, 1, 4],
        [2, 7, 32],
    ]
    half, real = torch.bfloat16, torch.float32
    assert [tensor.dtype for tensor in inputs] == [half, real, real, real, half]


def test_encoder_queries_sample_around_their_own_cell() -> None:
    workload = dataclasses.replace(TINY, offset_spread=0.5)
    inputs = make_inputs(workload, seed=0)
    cell = next(i for i, at in enumerate(itertools.product(range(4), range(6), range(5))) if
                at == (2, 4, 1))  # fmt: skip
    expected = torch.tensor([1.5 / 5, 4.5 / 6, 2.5 / 4])
    torch.testing.assert_close(inputs.reference_points[0, cell, 0], expected)
    assert inputs.sampling_offsets.std() == pytest.approx(0.5, rel=0.05)


def test_samples_keep_off_kinks() -> None:
    workload = WORKLOADS["paper-decoder"]
    inputs = make_inputs(workload, seed=0)
    sizes = torch.tensor(workload.spatial_shapes[0][::-1])
    points = inputs.reference_points[:, :, None, :, None].double()
    cells = points * sizes - 0.5 + inputs.sampling_offsets
    assert (cells - cells.round()).abs().min() > 0.9e-3


def test_seed_decides_the_inputs() -> None:
    first, again, other = (make_inputs(TINY, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.value, other.value)


def test_doubled_workload_has_twice_the_cells() -> None:
    for workload in (TINY, WORKLOADS["detr-encoder"]):
        assert workload.doubled().num_cells == 2 * workload.num_cells


def test_shrunk_workload_keeps_what_decides_the_code_path() -> None:
    workload = WORKLOADS["detr-encoder"]
    shrunk = workload.shrunk()
    assert shrunk.num_cells == 4 * 4
    kept = ("num_heads", "head_dim", "num_points", "dtype")
    assert all(getattr(shrunk, name) == getattr(workload, name) for name in kept)


def test_uniform_samples_cover_the_volume() -> None:
    for name in ("paper-encoder", "detr-encoder"):
        workload = dataclasses.replace(WORKLOADS[name], offset_spread=None)
        inputs = make_inputs(workload, 0)
        sizes = torch.tensor([shape[::-1] for shape in workload.spatial_shapes])[:, None]
        places = inputs.reference_points[:, :, None, :, None] + inputs.sampling_offsets / sizes
        assert places.mean() == pytest.approx(0.5, abs=0.01)
        assert places.std() == pytest.approx(12**-0.5, abs=0.01)
        assert corner_bytes(workload, inputs) > 0
        assert workload.label == f"{name}, float32, uniform"
