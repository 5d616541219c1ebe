"""What an operator call moves: value rows it reads, numbers the CUDA backward adds; counted."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from benchmarks.workloads import Inputs, Workload

# The same in csrc/cuda/binned/plan.h, which the tests compare.
SAMPLES_PER_WARP = 128
SAMPLES_PER_BIN = 4  # from which on the backward works bin by bin


def corner_bytes(workload: Workload, inputs: Inputs) -> int:
    """Bytes of all corner rows that exist: each is read once per sample that touches it."""
    return _num_corners(workload, inputs) * workload.head_dim * inputs.value.element_size()


def compulsory_bytes(inputs: Inputs) -> int:
    """Bytes of all arguments and the result of a forward call, each once."""
    # The gradient of the result has the result's size.
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs)


def added_numbers(workload: Workload, inputs: Inputs) -> tuple[int, str]:
    """Numbers that the CUDA backward adds to the value's gradient in memory, and how.

    One by one each sample adds to its corners. Bin by bin each bin does, and once more where the
    samples of a warp end within it.
    """
    if not takes_bins(workload):
        return _num_corners(workload, inputs) * workload.head_dim, "one by one"
    samples = corners = 0
    for level, shape in enumerate(workload.spatial_shapes):
        of_sample = _corners_that_exist(workload, inputs, level)
        batch, _, heads, _ = of_sample.shape
        key = torch.arange(batch * heads, device=of_sample.device).view(batch, 1, heads, 1)
        for axis, size in enumerate(reversed(shape)):
            key = key * (size + 1) + _low_cells(inputs, level, axis, size) + 1
        reads = of_sample > 0
        bins, which = torch.unique(key[reads], return_inverse=True)
        samples += len(which)
        corners += int(torch.zeros_like(bins).scatter_(0, which, of_sample[reads]).sum())
    splits = samples // SAMPLES_PER_WARP << len(workload.spatial_shapes[0])
    return (corners + splits) * workload.head_dim, "bin by bin"


def takes_bins(workload: Workload) -> bool:
    """Whether the CUDA backward works bin by bin without deterministic algorithms."""
    samples = len(workload.spatial_shapes) * workload.num_points * workload.num_queries
    bins = sum(math.prod(size + 1 for size in shape) for shape in workload.spatial_shapes)
    return samples >= SAMPLES_PER_BIN * bins


def corner_rows(workload: Workload, inputs: Inputs, batch: int, head: int) -> Tensor:
    """Numbers of the rows one head reads, int32, query after query, point after point."""
    levels = []
    start = 0
    for level, shape in enumerate(workload.spatial_shapes):
        corners = []
        lows = [
            _low_cells(inputs, level, axis, size)[batch, :, head]
            for axis, size in enumerate(reversed(shape))
        ]
        for steps in itertools.product((0, 1), repeat=len(shape)):
            row = torch.full_like(lows[0], start, dtype=torch.int64)
            exists = torch.ones_like(row, dtype=torch.bool)
            stride = 1
            for low, step, size in zip(lows, steps, reversed(shape), strict=True):
                exists &= _exists(low + step, size)
                row += (low + step) * stride
                stride *= size
            corners.append(torch.where(exists, row, -1))
        levels.append(torch.stack(corners, dim=-1))  # [Q, K, corners]
        start += math.prod(shape)
    rows = torch.stack(levels, dim=1).flatten().int()
    return rows[rows >= 0]


def _num_corners(workload: Workload, inputs: Inputs) -> int:
    levels = range(len(workload.spatial_shapes))
    return sum(int(_corners_that_exist(workload, inputs, level).sum()) for level in levels)


def _corners_that_exist(workload: Workload, inputs: Inputs, level: int) -> Tensor:
    """[B, Q, M, K]: how many corners of every sample of a level are cells of it."""
    corners = torch.ones((), dtype=torch.int64)
    for axis, size in enumerate(reversed(workload.spatial_shapes[level])):
        low = _low_cells(inputs, level, axis, size)
        corners = corners * (_exists(low, size).long() + _exists(low + 1, size).long())
    return corners


def _low_cells(inputs: Inputs, level: int, axis: int, size: int) -> Tensor:
    """[B, Q, M, K]: the lower neighbour of every sample of a level on an axis."""
    points = inputs.reference_points[:, :, None, level, None, axis]
    location = points + inputs.sampling_offsets[:, :, :, level, :, axis] / size
    return (location * size - 0.5).floor().long()


def _exists(cell: Tensor, size: int) -> Tensor:
    return (cell >= 0) & (cell < size)
