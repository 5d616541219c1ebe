"""The operator with one GridSample per level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import product
from ._samples import Samples

_OUTSIDE = 4.0  # beyond every level, which reaches from -1 to 1; with its border at most to 2


def attend(value: Tensor, samples: Samples) -> Tensor:  # [B, S, M, D] -> [B, Q, M * D]
    """Weighted sum of what `grid_sample` reads, level by level; memory for one level's samples."""
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_axes = samples.positions.shape[1], len(samples.shapes[0])
    sizes = samples.table([row[::-1] for row in samples.shapes], value.dtype)
    grids = samples.coordinates(torch.full_like(sizes, 2.0), -1.0, 2.0 / sizes)
    # Runtimes differ in what they make of NaN, infinity and what no integer holds.
    grids = torch.where(grids.abs() < _OUTSIDE, grids, _OUTSIDE)
    grids = grids.transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, N]
    weights = samples.weights.transpose(1, 2).flatten(0, 1)[:, None]  # [B * M, 1, Q, P]
    levels = value.split([product(row) for row in samples.shapes], 1)
    points = list(samples.points)
    out: Tensor | None = None
    of_levels = zip(
        levels, samples.shapes, grids.split(points, 2), weights.split(points, 3), strict=True
    )
    for rows, shape, grid, weight in of_levels:
        volume = rows.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, *shape)
        read = F.grid_sample(
            volume,
            grid if num_axes == 2 else grid[:, :, :, None],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        if num_axes == 3:
            read = read.squeeze(-1)  # indexing would copy
        attended = (read * weight).sum(-1)  # [B * M, D, Q]
        out = attended if out is None else out + attended
    assert out is not None
    out = out.reshape(batch, num_heads * head_dim, num_queries).transpose(1, 2)
    return out.contiguous()  # as the operator's: views may follow
