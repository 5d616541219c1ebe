"""What other projects pass to the operator, as the operator takes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _layer_checks, functional
from .._shape_tensors import read_rows

Shapes = Sequence[Sequence[int]] | Tensor


def attend(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Shapes,  # L rows of N sizes
    level_start_index: Sequence[int] | Tensor | None,
    locations: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    weights: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    num_points: Sequence[int] = (),  # of each level; none where there is an axis for levels
) -> Tensor:  # [B, Q, M * D] in the dtype that PyTorch gives to a result of all three
    """Attends, with shapes as a tensor or ints, and tensors of different dtypes."""
    value, locations, weights = promoted(value, locations, weights)
    sizes, locations = read(
        value, spatial_shapes, level_start_index, locations, weights, num_points
    )
    return functional.attend(value, sizes, None, locations, weights, num_points, "auto")


def attend_flat(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Shapes,
    locations: Tensor,  # [B, Q, M, L * K, 2]
    weights: Tensor,  # [B, Q, M, L * K]
) -> Tensor:  # [B, Q, M * D]
    """As `attend`, with as many points on each level, those of level 0 first."""
    num_levels = len(spatial_shapes)
    num_points = [locations.shape[3] // num_levels] * num_levels
    return attend(value, spatial_shapes, None, locations, weights, num_points)


def promoted(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in the dtype that PyTorch gives to a result of all three."""
    named = {"value": value, "sampling_loc": locations, "attn_weight": weights}
    for name, tensor in named.items():
        _checks.check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def read(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Sequence[int] | Tensor | None,
    locations: Tensor,
    weights: Tensor,
    num_points: Sequence[int] = (),
) -> tuple[list[int], Tensor]:
    """Checks the arguments; returns sizes and locations as the kernels take them."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = read_rows("spatial_shapes", spatial_shapes, value)
    sizes = _checks.check_attention(value, spatial_shapes, locations, weights, num_points or None)
    if level_start_index is not None:
        _layer_checks.check_level_starts(
            *("level_start_index", level_start_index, "spatial_shapes", sizes),
            len(spatial_shapes[0]),
        )
    if len(sizes) == len(spatial_shapes):  # N = 1
        return functional.as_images(sizes, locations)
    return sizes, locations
