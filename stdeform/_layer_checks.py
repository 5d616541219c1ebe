"""Every argument check of the layers, and its message."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._checks import VALUE_DTYPES, check_companion, dtype_rule
from ._shape_tensors import on_device


def check_layer_sizes(**sizes: Any) -> None:
    """Checks the sizes of a layer, in the order channels, levels, heads, points."""
    (channels_name, channels), (_, num_levels), (heads_name, num_heads), _ = sizes.items()
    points_name, points = sizes.popitem()
    per_level = isinstance(points, Sequence) and not isinstance(points, str)
    for name, size in sizes.items() if per_level else (*sizes.items(), (points_name, points)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if channels % num_heads:
        raise ValueError(
            f"{channels_name} must be a multiple of {heads_name}, {num_heads}, got {channels}"
        )
    if per_level:
        _checks.check_num_points(points, num_levels, points_name)


def check_layer_inputs(
    names: tuple[str, str, str],  # of value, spatial_shapes and padding_mask
    sizes: tuple[int, int, int],  # embed_dim, num_levels, N
    query: Tensor,
    reference_points: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    padding_mask: Tensor | None,
    level_starts: Sequence[int] | Tensor | None = None,
) -> list[int]:
    """Checks the arguments of a layer's call; returns the table's L * N sizes."""
    value_name, table_name, mask_name = names
    embed_dim, num_levels, num_axes = sizes
    for name, tensor in (("query", query), (value_name, value)):
        _checks.check_tensor(name, tensor)
        shape = tensor.shape
        if len(shape) != 3 or shape[2] != embed_dim:
            raise ValueError(
                f"{name} must have 3 axes, the last of embed_dim = {embed_dim} channels, "
                f"got shape {list(shape)}"
            )
    num_cells, table = _checks.check_spatial_shapes(spatial_shapes, num_axes, table_name)
    if len(spatial_shapes) != num_levels:
        raise ValueError(
            f"{table_name} must have num_levels = {num_levels} rows, got {len(spatial_shapes)}"
        )
    batch, num_queries, _ = query.shape
    if value.shape[:2] != (batch, num_cells):
        raise ValueError(
            f"{value_name} must have shape {[batch, num_cells, embed_dim]} to match query and "
            f"{table_name}, got {list(value.shape)}"
        )
    if padding_mask is not None:
        _checks.check_mask(mask_name, padding_mask)
        if padding_mask.shape != (batch, num_cells):
            raise ValueError(
                f"{mask_name} must have shape {[batch, num_cells]} to match {value_name}, "
                f"got {list(padding_mask.shape)}"
            )
    if level_starts is not None:
        check_level_starts("input_level_start_index", level_starts, table_name, table, num_axes)
    _checks.check_tensor("reference_points", reference_points)
    shape = reference_points.shape
    if (
        len(shape) not in (3, 4)
        or shape[0] not in (1, batch)
        or shape[1] != num_queries
        or (len(shape) == 4 and shape[2] not in (1, num_levels))
        or shape[-1] not in (num_axes, 2 * num_axes)
    ):
        raise ValueError(
            f"reference_points must have shape [{batch}, {num_queries}, {num_levels}, "
            f"{num_axes}] (points) or [..., {2 * num_axes}] (centre then size); the batch and the "
            f"levels may be 1, and the levels may be left out; got {list(shape)}"
        )
    return table


def check_level_starts(
    name: str,
    starts: Sequence[int] | Tensor,
    table_name: str,
    table: list[int],  # L * N sizes
    num_axes: int,
) -> None:
    """Checks that levels start one after the other; trusts a tensor that has to be waited for."""
    if isinstance(starts, Tensor):
        if on_device(starts) or torch.compiler.is_compiling():
            return
        starts = starts.tolist()
    cells = [math.prod(table[i : i + num_axes]) for i in range(0, len(table), num_axes)]
    expected = [0, *itertools.accumulate(cells[:-1])]
    if list(starts) != expected:
        raise ValueError(f"{name} must be {expected} to match {table_name}, got {list(starts)}")


def check_layer_dtypes(
    value: Tensor, reference_points: Tensor, sampling_offsets: Tensor, attention_weights: Tensor
) -> None:
    """Checks dtypes and devices of what a layer gives to the operator, the value projected."""
    dtype, device, name = value.dtype, value.device, "the projected value"
    if dtype not in VALUE_DTYPES:
        raise TypeError(dtype_rule(name, dtype))
    check_companion("reference_points", reference_points, dtype, device, name)
    check_companion("sampling_offsets", sampling_offsets, dtype, device, name)
    check_companion("attention_weights", attention_weights, dtype, device, name)


def explain_projection_error(
    names: tuple[str, str, str],  # of value, spatial_shapes and padding_mask
    weight: Tensor,
    query: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
) -> None:
    """Says which argument does not fit a layer with this weight, if one of them does not.

    To be asked after PyTorch's error: then a call pays nothing, and nothing is refused that would
    have worked. Autocast casts, and a quantised layer has weights of another dtype.

    Raises:
        TypeError: The query or the value has another dtype.
        ValueError: The query, the value or the mask is on another device.
    """
    value_name, _, mask_name = names
    for name, tensor in (("query", query), (value_name, value), (mask_name, padding_mask)):
        if tensor is not None and tensor.device != weight.device:
            raise ValueError(
                f"{name} must be on the layer's device, {weight.device}, got {tensor.device}"
            )
    for name, tensor in (("query", query), (value_name, value)):
        if tensor.dtype != weight.dtype:
            raise TypeError(
                f"{name} must be of the layer's dtype, {weight.dtype}, got {tensor.dtype}"
            )
