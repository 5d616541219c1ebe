"""Which value rows an operator call reads: counted, and listed in the order of the definition."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from benchmarks.workloads import Inputs, Workload


def corner_bytes(workload: Workload, inputs: Inputs) -> int:
    """Bytes of all corner rows that exist: each is read once per sample that touches it."""
    levels = range(len(workload.spatial_shapes))
    count = sum(int(corners_that_exist(workload, inputs, level).sum()) for level in levels)
    return count * workload.head_dim * inputs.value.element_size()


def compulsory_bytes(inputs: Inputs) -> int:
    """Bytes of all arguments and the result of a forward call, each once."""
    # The gradient of the result has the result's size.
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs)


def corners_that_exist(workload: Workload, inputs: Inputs, level: int) -> Tensor:
    """[B, Q, M, K]: how many corners of every sample of a level lie inside."""
    corners = torch.ones((), dtype=torch.int64)
    for axis, size in enumerate(reversed(workload.spatial_shapes[level])):
        low = low_cells(inputs, level, axis, size)
        corners = corners * (_exists(low, size).long() + _exists(low + 1, size).long())
    return corners


def corner_rows(workload: Workload, inputs: Inputs, batch: int, head: int) -> Tensor:
    """Numbers of the rows one head reads, int32, query after query, point after point."""
    rows = corner_table(workload, inputs, batch, head).flatten()
    return rows[rows >= 0]


def corner_table(workload: Workload, inputs: Inputs, batch: int, head: int) -> Tensor:
    """[Q, L * K, corners]: numbers of the rows one head reads, int32, -1 where no cell is."""
    levels = []
    start = 0
    for level, shape in enumerate(workload.spatial_shapes):
        corners = []
        lows = [
            low_cells(inputs, level, axis, size)[batch, :, head]
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
    return torch.stack(levels, dim=1).flatten(1, 2).int()


def low_cells(inputs: Inputs, level: int, axis: int, size: int) -> Tensor:
    """[B, Q, M, K]: the lower neighbour of every sample of a level on an axis."""
    points = inputs.reference_points[:, :, None, level, None, axis]
    location = points + inputs.sampling_offsets[:, :, :, level, :, axis] / size
    return (location * size - 0.5).floor().long()


def _exists(cell: Tensor, size: int) -> Tensor:
    return (cell >= 0) & (cell < size)
