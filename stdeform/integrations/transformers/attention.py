"""The functions of transformers' models, by their signatures, on this library's operator."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import _checks
from .. import _arguments
from .._arguments import Shapes


def forward(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Shapes,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """`MultiScaleDeformableAttention.forward`, the class of Deformable DETR and nine others."""
    return multi_scale_deformable_attention(
        value, value_spatial_shapes_list, sampling_locations, attention_weights
    )


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The function of Mask2Former and OneFormer.

    Args:
        value: [B, S, M, D].
        value_spatial_shapes: One row (H, W) per level, as ints or a tensor.
        sampling_locations: [B, Q, M, L, K, 2] as (x, y).
        attention_weights: [B, Q, M, L, K].

    Returns:
        [B, Q, M * D] in the promoted dtype.
    """
    return _arguments.attend(
        value, value_spatial_shapes, None, sampling_locations, attention_weights
    )


def multi_scale_deformable_attention_v2(
    value: Tensor,
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """The function of RT-DETRv2, D-FINE and DEIMv2.

    Args:
        value: [B, S, M, D].
        value_spatial_shapes: One row (H, W) per level, as ints or a tensor.
        sampling_locations: [B, Q, M, P, 2] as (x, y), the points of level 0 first.
        attention_weights: [B, Q, M, P].
        num_points_list: The points of each level, which add up to P.
        method: "default" interpolates. "discrete" reads the nearest cell of the level, by the
            rounding of these models, and gives locations no gradient. An infinite or NaN cell
            makes those beside it NaN, which it does not in these models.

    Returns:
        [B, Q, M * D] in the dtype that PyTorch gives to a result of all three tensors; for
        "discrete", of value and weights.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: `method` is another one, `num_points_list` does not fit, or a shape or size
            breaks its rule.
    """
    if method not in ("default", "discrete"):
        raise ValueError(f'method must be "default" or "discrete", got {method!r}')
    _checks.check_tensor("sampling_locations", sampling_locations)
    levels, points = len(value_spatial_shapes), sampling_locations.shape[-2]
    if len(num_points_list) != levels or sum(num_points_list) != points:
        raise ValueError(
            f"num_points_list must have {levels} numbers, one per level, that add up to the "
            f"{points} points of sampling_locations, got {list(num_points_list)}"
        )
    attend = functools.partial(_arguments.attend, value, value_spatial_shapes, None)
    if method == "default":
        return attend(sampling_locations, attention_weights, num_points_list)
    centres = _centres(sampling_locations, value_spatial_shapes, num_points_list)
    dtype = torch.promote_types(value.dtype, attention_weights.dtype)
    return attend(centres, attention_weights, num_points_list).to(dtype)


def _centres(locations: Tensor, shapes: Shapes, num_points: Sequence[int]) -> Tensor:
    """The centres of the cells that are read; at a centre, interpolation is that cell's value."""
    points = [
        (width, height)
        for (height, width), count in zip(shapes, num_points, strict=True)
        for _ in range(count)
    ]
    sizes = torch.tensor(points, device=locations.device)  # [P, 2]
    cells = (locations * sizes + 0.5).to(torch.int64)
    cells = torch.minimum(cells.clamp(min=0), sizes - 1)
    exact = torch.promote_types(locations.dtype, torch.float32)
    return (cells.to(exact) + 0.5) / sizes
