"""The operator's definition in plain PyTorch: any device, any order of derivative, no speed.

It reads every corner of every sample with a gather, and autograd differentiates it. The kernels are
tested against it, second derivatives run through it, and it is the backend where no kernel was
built.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import compute_dtype
from .shapes import product

__all__ = ["attend", "sampling_locations", "st_deform_attn", "st_deform_attn_from_offsets"]


def attend(
    value: Tensor,  # [B, S, M, D]
    sizes: Sequence[int],  # the L * N sizes of the level table
    reference_points: Tensor | None,
    positions: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    scores: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    num_points: Sequence[int] = (),
) -> Tensor:  # [B, Q, M * D]
    """Either form, by the arguments of the registered operator; see `stdeform._ops`."""
    num_axes = positions.shape[-1]
    rows = [sizes[i : i + num_axes] for i in range(0, len(sizes), num_axes)]
    if reference_points is None:
        return st_deform_attn(value, rows, positions, scores, num_points)
    return st_deform_attn_from_offsets(value, rows, reference_points, positions, scores, num_points)


def st_deform_attn(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes, (T, H, W) or (H, W)
    sampling_locations: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_weights: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    num_points: Sequence[int] = (),  # K of each level; none where there is an axis for levels
) -> Tensor:  # [B, Q, M * D]
    """Weighted sum of linearly interpolated values; see `stdeform.st_deform_attn`."""
    batch, _, num_heads, head_dim = value.shape
    num_queries = sampling_locations.shape[1]
    real = compute_dtype(value.dtype)
    rows = value.to(real).transpose(1, 2)  # [B, M, S, D]
    locations = _by_level(sampling_locations.to(real), num_points)
    weights = _by_level(attention_weights.to(real), num_points)
    out = rows.new_zeros(batch, num_queries, num_heads, head_dim)
    start = 0
    for shape, *samples in zip(spatial_shapes, locations, weights, strict=True):
        cells = product(shape)
        out = out + _attend_level(rows[:, :, start : start + cells], shape, *samples)
        start += cells
    return out.flatten(2).to(value.dtype)


def st_deform_attn_from_offsets(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_logits: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    num_points: Sequence[int] = (),
) -> Tensor:  # [B, Q, M * D]
    """Softmax, offsets to locations, then `st_deform_attn`."""
    real = compute_dtype(value.dtype)
    weights = attention_logits.to(real).flatten(3).softmax(-1).view(attention_logits.shape)
    locations = sampling_locations(
        spatial_shapes, reference_points.to(real), sampling_offsets.to(real), num_points
    )
    return st_deform_attn(value, spatial_shapes, locations, weights, num_points)


def sampling_locations(
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    num_points: Sequence[int] = (),
) -> Tensor:  # as sampling_offsets
    """Locations as fractions of each level: `ref + offset / size`, or box-relative.

    For boxes (centre then size) it is `centre + offset / K * box / 2`. Where the result is not
    finite it is NaN and passes no gradient, so that such a sample is a plain zero everywhere.
    """
    levels = []
    num_axes = sampling_offsets.shape[-1]
    of_levels = zip(spatial_shapes, _by_level(sampling_offsets, num_points), strict=True)
    for level, (shape, offsets) in enumerate(of_levels):
        reference = reference_points[:, :, None, None, level]  # [B, Q, 1, 1, N or 2N]
        centre = reference[..., :num_axes]
        if reference.shape[-1] == num_axes:
            # One by one, because `new_tensor` of sizes would fix them in an exported graph.
            scale = torch.stack([offsets.new_ones(()) / size for size in reversed(shape)])
        else:
            scale = reference[..., num_axes:] * (0.5 / offsets.shape[3])
        finite = torch.isfinite(centre + offsets * scale)
        centre, offsets, scale = (
            torch.where(finite, part, 0.0) for part in (centre, offsets, scale)
        )
        levels.append(torch.where(finite, centre + offsets * scale, torch.nan))
    return torch.cat(levels, 3) if num_points else torch.stack(levels, 3)


def _by_level(samples: Tensor, num_points: Sequence[int]) -> Sequence[Tensor]:
    """[B, Q, M, K, ...] of each level."""
    return samples.split(list(num_points), 3) if num_points else samples.unbind(3)


def _attend_level(
    rows: Tensor,  # [B, M, S_l, D]
    shape: Sequence[int],  # N sizes of this level
    locations: Tensor,  # [B, Q, M, K, N]
    weights: Tensor,  # [B, Q, M, K]
) -> Tensor:  # [B, Q, M, D]
    batch, num_queries, num_heads, num_points, num_axes = locations.shape
    head_dim = rows.shape[-1]
    # Per axis, innermost (x) first: the two neighbouring cells, their weights, whether they exist.
    axes = []
    stride = 1
    for axis in range(num_axes):
        size = shape[num_axes - 1 - axis]
        position = locations[..., axis] * size - 0.5
        # Far outside, NaN and infinity: move the point to where neither neighbour exists.
        inside = (position >= -1) & (position < size)
        position = torch.where(inside, position, -2.0)
        low = position.floor()
        fraction = position - low
        corners = []
        for cell, weight in ((low, 1 - fraction), (low + 1, fraction)):
            exists = (cell >= 0) & (cell < size)
            index = cell.clamp(0, size - 1).long() * stride
            corners.append((index, weight, exists))
        axes.append(corners)
        stride *= size

    out = rows.new_zeros(batch, num_queries, num_heads, head_dim)
    for corner in itertools.product(*axes):
        index = torch.zeros_like(weights, dtype=torch.long)
        weight = weights
        exists = torch.ones_like(weights, dtype=torch.bool)
        for axis_index, axis_weight, axis_exists in corner:
            index = index + axis_index
            weight = weight * axis_weight
            exists = exists & axis_exists
        flat = index.transpose(1, 2).reshape(batch, num_heads, num_queries * num_points, 1)
        read = rows.gather(2, flat.expand(-1, -1, -1, head_dim))
        read = read.view(batch, num_heads, num_queries, num_points, head_dim).transpose(1, 2)
        # `where`, not a product: a cell that is not read must not leak its NaN or infinity.
        read = torch.where(exists[..., None], read, 0.0)
        out = out + (weight[..., None] * read).sum(3)
    return out
