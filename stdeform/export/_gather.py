"""The operator with gathers of pairs of cells, for runtimes without a good GridSample.

Each level gets a border of zeros, so that every corner of a sample exists, and the rows of all
levels are one list. A row of the gathered table holds a cell and its neighbour along x: half as
many gathers, twice as long. No tensor has more than five axes.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import product
from ._samples import Samples

# Cells before and after each axis. A sample that reads nothing is at -2, where both corners are 0.
_BEFORE, _AFTER = 2, 1


def attend(value: Tensor, samples: Samples) -> Tensor:  # [B, S, M, D] -> [B, Q, M * D]
    """Weighted sum of 2^(N - 1) gathers; memory for one of them, two cells per sample."""
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_axes = samples.positions.shape[1], len(samples.shapes[0])
    num_points = sum(samples.points)
    pairs, num_cells = _pairs(value, samples)
    sizes = samples.table([row[::-1] for row in samples.shapes], value.dtype)
    cells = samples.coordinates(sizes, -0.5, None)
    readable = (cells > -1) & (cells < samples.spread(sizes, 0))
    cells = torch.where(readable, cells, -float(_BEFORE))
    low = cells.floor()

    # The pair of the lowest corner: integers, because float32 counts to 2^24 only.
    starts, strides = _layout(samples, num_heads)
    heads = torch.arange(num_heads, device=value.device)[:, None] + starts  # [M, P]
    images = torch.arange(batch, device=value.device) * (num_cells * num_heads)
    first = images[:, None, None, None] + heads[:, :]
    index = ((low.long() + _BEFORE) * strides).sum(-1) + first  # [B, Q, M, P]

    upper = (cells - low).unbind(-1)
    lower = [1 - weight for weight in upper]
    out = None
    for corner in itertools.product((0, 1), repeat=num_axes - 1):  # of y, or of y and t
        pair, weight = index, samples.weights
        for axis, above in enumerate(corner, start=1):
            pair = pair + strides[:, axis] if above else pair
            weight = weight * (upper if above else lower)[axis]
        weights = torch.stack((weight * lower[0], weight * upper[0]), -1)
        read = pairs.index_select(0, pair.flatten())
        attended = weights.reshape(-1, 1, 2 * num_points) @ read.view(-1, 2 * num_points, head_dim)
        out = attended if out is None else out + attended
    assert out is not None
    return out.view(batch, num_queries, num_heads * head_dim)


def _pairs(value: Tensor, samples: Samples) -> tuple[Tensor, int]:
    """Cells with their neighbours along x, [B * cells * M, 2 * D], and the number of cells."""
    batch, _, num_heads, head_dim = value.shape
    levels = value.flatten(2).split([product(row) for row in samples.shapes], 1)
    border = [0, 0, *(_BEFORE, _AFTER) * len(samples.shapes[0])]
    with_border = [
        F.pad(rows.reshape(batch, *shape, num_heads * head_dim), border).flatten(1, -2)
        for rows, shape in zip(levels, samples.shapes, strict=True)
    ]
    joined = torch.cat(with_border, 1) if len(with_border) > 1 else with_border[0]
    rows = joined.view(-1, head_dim)
    return torch.cat((rows[:-num_heads], rows[num_heads:]), 1), joined.shape[1]


def _layout(samples: Samples, num_heads: int) -> tuple[Tensor, Tensor]:
    """Where the level of each sample starts among the pairs, [P], and its strides, [P, N]."""
    starts, strides, total = [], [], 0
    for shape in samples.shapes:
        stride = num_heads
        starts.append([total * num_heads])
        of_level = []
        for size in reversed(shape):
            of_level.append(stride)
            stride = stride * (size + _BEFORE + _AFTER)
        strides.append(of_level)
        total = total + stride // num_heads
    tables = (samples.table(rows, torch.int64) for rows in (starts, strides))
    starts_of, strides_of = (samples.spread(table, 0) for table in tables)
    return starts_of[:, 0], strides_of
