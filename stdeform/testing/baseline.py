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
    sampling_locations: Tensor,  # [B, Q, M, L, K, N]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn` with one `grid_sample` per level, all in the wider dtype.

    The baseline of the benchmarks, and an oracle for finite coordinates.
    """
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    batch, _, num_heads, head_dim = value.shape
    _, num_queries, _, _, num_points, num_axes = sampling_locations.shape
    grids = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # [B * M, Q, L, K]
    out = value.new_zeros(batch * num_heads, head_dim, num_queries, dtype=dtype)
    levels = value.split([product(shape) for shape in spatial_shapes], 1)
    for level, (cells, shape) in enumerate(zip(levels, spatial_shapes, strict=True)):
        rows = cells.to(dtype)  # [B, S_l, M, D]
        volume = rows.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, *shape)
        grid = grids[:, :, level]  # [B * M, Q, K, N]
        read = F.grid_sample(
            volume,
            grid if num_axes == 2 else grid[:, :, :, None],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        ).view(batch * num_heads, head_dim, num_queries, num_points)
        out = out + (read * weights[:, None, :, level]).sum(-1)
    return out.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).to(value.dtype)


def composite_from_offsets(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N]
    attention_logits: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn_from_offsets` with softmax, locations and `composite`."""
    num_points, num_axes = sampling_offsets.shape[-2:]
    points = reference_points[:, :, None, :, None]
    if reference_points.shape[-1] == num_axes:
        sizes = sampling_offsets.new_tensor([list(row)[::-1] for row in spatial_shapes])
        locations = points + sampling_offsets / sizes[:, None]
    else:
        centre, box = points.chunk(2, -1)
        locations = centre + sampling_offsets / num_points * box * 0.5
    weights = attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)
    return composite(value, spatial_shapes, locations, weights)
