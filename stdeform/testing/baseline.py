"""The grid_sample baseline: both forms as one writes them in PyTorch without this library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import product


def composite(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    sampling_locations: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_weights: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    *,
    num_points: Sequence[int] | None = None,  # of each level, where they differ
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn` with one `grid_sample` per level, all in the wider dtype.

    The baseline of the benchmarks, and an oracle for finite coordinates.
    """
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_axes = sampling_locations.shape[1], sampling_locations.shape[-1]
    grids = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # [B * M, Q, ...]
    out = value.new_zeros(batch * num_heads, head_dim, num_queries, dtype=dtype)
    levels = value.split([product(shape) for shape in spatial_shapes], 1)
    samples = (_by_level(grids, num_points), _by_level(weights, num_points))
    for cells, shape, grid, weight in zip(levels, spatial_shapes, *samples, strict=True):
        rows = cells.to(dtype)  # [B, S_l, M, D]
        volume = rows.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, *shape)
        read = F.grid_sample(
            volume,
            grid if num_axes == 2 else grid[:, :, :, None],  # [B * M, Q, K, (1,) N]
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        ).view(batch * num_heads, head_dim, num_queries, grid.shape[2])
        out = out + (read * weight[:, None]).sum(-1)
    return out.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).to(value.dtype)


def composite_from_offsets(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_logits: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    *,
    num_points: Sequence[int] | None = None,
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn_from_offsets` with softmax, locations and `composite`."""
    num_axes = sampling_offsets.shape[-1]
    levels = zip(spatial_shapes, _by_level(sampling_offsets, num_points, 3), strict=True)
    locations = []
    for level, (shape, offsets) in enumerate(levels):
        points = reference_points[:, :, None, None, level]
        if reference_points.shape[-1] == num_axes:
            locations.append(points + offsets / offsets.new_tensor(list(shape)[::-1]))
        else:
            centre, box = points.chunk(2, -1)
            locations.append(centre + offsets / offsets.shape[3] * box * 0.5)
    joined = torch.cat(locations, 3) if num_points else torch.stack(locations, 3)
    weights = attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)
    return composite(value, spatial_shapes, joined, weights, num_points=num_points)


def _by_level(samples: Tensor, num_points: Sequence[int] | None, axis: int = 2) -> Sequence[Tensor]:
    """The samples of each level, whose axis or that of all points is `axis`."""
    return samples.split(list(num_points), axis) if num_points else samples.unbind(axis)
