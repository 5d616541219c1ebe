"""Deformable attention in PyTorch alone, as models of its family write it.

The plain code of Deformable DETR (Zhu et al., ICLR 2021), which an export takes where its compiled
operator cannot go: `grid_sample` on each level, all samples stacked, one product and one sum. Also
of videos, for which `grid_sample` has a 5-D form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdeform.shapes import product


def attend(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    sampling_locations: Tensor,  # [B, Q, M, L, K, N]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """`ms_deform_attn_core_pytorch`, and the same on volumes."""
    batch, _, num_heads, head_dim = value.shape
    _, num_queries, _, num_levels, num_points, num_axes = sampling_locations.shape
    levels = value.split([product(shape) for shape in spatial_shapes], 1)
    grids = 2 * sampling_locations - 1
    samples = []
    for level, shape in enumerate(spatial_shapes):
        cells = levels[level].flatten(2).transpose(1, 2)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * M, Q, K, N]
        read = F.grid_sample(
            cells.reshape(batch * num_heads, head_dim, *shape),
            grid if num_axes == 2 else grid[:, :, :, None],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        samples.append(read.flatten(3))  # [B * M, D, Q, K]
    weights = attention_weights.transpose(1, 2).reshape(
        batch * num_heads, 1, num_queries, num_levels * num_points
    )
    out = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return out.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).contiguous()


def attend_from_offsets(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N]
    attention_logits: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """Softmax and locations as in the layer of Deformable DETR, and `attend`."""
    num_levels, num_points, num_axes = sampling_offsets.shape[3:]
    weights = attention_logits.flatten(3).softmax(-1)
    weights = weights.view(*attention_logits.shape[:3], num_levels, num_points)
    if reference_points.shape[-1] == num_axes:
        sizes = torch.tensor([list(shape)[::-1] for shape in spatial_shapes], device=value.device)
        locations = reference_points[:, :, None, :, None] + (
            sampling_offsets / sizes[None, None, None, :, None]
        )
    else:
        centres, boxes = reference_points[:, :, None, :, None].chunk(2, -1)
        locations = centres + sampling_offsets / num_points * boxes * 0.5
    return attend(value, spatial_shapes, locations, weights)


class PlainMSDeformAttn(nn.Module):
    """The layer of Deformable DETR on `attend`; parameters and arguments of `MSDeformAttn`."""

    def __init__(self, embed_dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self._samples = (num_heads, num_levels, num_points)
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, 2 * samples)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Sequence[Sequence[int]],
        input_level_start_index: Any = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """See `stdeform.MSDeformAttn`; reference points of all levels, [B, Q, L, 2 or 4]."""
        batch, num_queries, _ = query.shape
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        attended = attend_from_offsets(
            value.view(*value.shape[:2], self._samples[0], -1),
            input_spatial_shapes,
            reference_points,
            self.sampling_offsets(query).view(batch, num_queries, *self._samples, 2),
            self.attention_weights(query).view(batch, num_queries, *self._samples),
        )
        out: Tensor = self.output_proj(attended)
        return out
