"""Every argument check of the operators, and its message."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUM_AXES = (2, 3)
_TABLE_RULE = "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)]"

# What every call pays for: each attribute of a tensor is read once, shapes are compared whole,
# and texts are made only for an error.


def check_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> list[int]:
    """Checks the arguments of `st_deform_attn`; returns the L * N sizes of the level table."""
    names = ("sampling_locations", "attention_weights")
    return _check_samples(names, value, spatial_shapes, sampling_locations, attention_weights)[0]


def check_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> list[int]:
    """Checks the arguments of `st_deform_attn_from_offsets`; returns the table's L * N sizes."""
    names = ("sampling_offsets", "attention_logits")
    sizes, expected = _check_samples(
        names, value, spatial_shapes, sampling_offsets, attention_logits
    )
    batch, num_queries, _, num_levels, _, num_axes = expected
    _check_companion("reference_points", reference_points, value.dtype, value.device)
    shape = reference_points.shape
    points = (batch, num_queries, num_levels, num_axes)
    boxes = (batch, num_queries, num_levels, 2 * num_axes)
    if shape != points and shape != boxes:
        raise ValueError(
            f"reference_points must have shape {list(points)} (points) or {list(boxes)} "
            f"(centre then size), got {list(shape)}"
        )
    return sizes


def check_spatial_shapes(
    spatial_shapes: Sequence[Sequence[int]], num_axes: int
) -> tuple[int, list[int]]:
    """Checks the level table; returns S, the number of cells of all levels, and all its sizes."""
    if not _is_sequence(spatial_shapes):
        if isinstance(spatial_shapes, Tensor):
            raise TypeError(
                f"{_TABLE_RULE}, got a Tensor; reading one from a device would stall it"
            )
        raise TypeError(f"{_TABLE_RULE}, got {spatial_shapes!r}")
    if len(spatial_shapes) == 0:
        raise ValueError("spatial_shapes must have at least one row, got none")
    total = 0
    sizes: list[int] = []
    for row in spatial_shapes:
        if not _is_sequence(row):
            raise TypeError(f"{_TABLE_RULE}, got {spatial_shapes!r}")
        if len(row) != num_axes:
            raise ValueError(
                f"spatial_shapes rows must have {num_axes} sizes to match the last axis of the "
                f"samples, got {tuple(row)}"
            )
        cells = 1
        for size in row:
            if type(size) is not int and not _is_size(size):
                raise TypeError(
                    f"spatial_shapes must hold Python ints, got {type(size).__name__} in {row!r}"
                )
            if size < 1:
                raise ValueError(f"spatial_shapes sizes must be at least 1, got {tuple(row)}")
            cells *= size
        total += cells
        sizes += row
    return total, sizes


def check_mask(name: str, mask: Tensor) -> None:
    """Checks that a padding mask is a bool tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool Tensor, True where there is padding, got {got}")


def _check_samples(
    names: tuple[str, str],
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    positions: Tensor,
    scores: Tensor,
) -> tuple[list[int], tuple[int, ...]]:
    """Checks what both forms have; returns the table's sizes and the shape of the positions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a Tensor, got {type(value).__name__}")
    shape, dtype, device = value.shape, value.dtype, value.device
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"value must have shape [B, S, M, D] with M and D >= 1, got {list(shape)}")
    if dtype not in VALUE_DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in VALUE_DTYPES)
        raise TypeError(f"value must be one of {known}, got {dtype}")
    name, score_name = names
    _check_companion(name, positions, dtype, device)
    found = positions.shape
    if len(found) != 6 or found[5] not in NUM_AXES:
        raise ValueError(
            f"{name} must have shape [B, Q, M, L, K, N] with N = 2 (x, y) or 3 (x, y, t), "
            f"got {list(found)}"
        )
    batch, total, num_heads, _ = shape
    _, num_queries, _, _, num_points, num_axes = found
    num_cells, sizes = check_spatial_shapes(spatial_shapes, num_axes)
    if num_cells != total:
        raise ValueError(
            f"value must have as many rows as spatial_shapes has cells, {num_cells}, "
            f"got {total} in value of shape {list(shape)}"
        )
    if num_points < 1:
        raise ValueError(f"{name} must have K >= 1 points, got shape {list(found)}")
    expected = (batch, num_queries, num_heads, len(spatial_shapes), num_points, num_axes)
    if found != expected:
        raise ValueError(
            f"{name} must have shape {list(expected)} to match value and spatial_shapes, "
            f"got {list(found)}"
        )
    _check_companion(score_name, scores, dtype, device)
    if scores.shape != expected[:-1]:
        raise ValueError(
            f"{score_name} must have shape {list(expected[:-1])} to match {name}, "
            f"got {list(scores.shape)}"
        )
    return sizes, expected


def _check_companion(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Checks what goes with a value of this dtype on this device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype and tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be float32 or of value's dtype, {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on value's device, {device}, got {tensor.device}")


def _is_sequence(rows: object) -> bool:
    # Tuples and lists first: to ask the abstract class is slow.
    return isinstance(rows, (tuple, list)) or (
        isinstance(rows, Sequence) and not isinstance(rows, str)
    )


def _is_size(size: object) -> bool:
    return isinstance(size, (int, torch.SymInt)) and not isinstance(size, bool)
