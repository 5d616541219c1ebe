"""Every argument check of the operators, and its message."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUM_AXES = (2, 3)


def check_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Checks the arguments of `st_deform_attn`."""
    _check_samples(
        value,
        spatial_shapes,
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    )


def check_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:
    """Checks the arguments of `st_deform_attn_from_offsets`."""
    _check_samples(
        value,
        spatial_shapes,
        ("sampling_offsets", sampling_offsets),
        ("attention_logits", attention_logits),
    )
    batch, num_queries, _, num_levels, _, num_axes = sampling_offsets.shape
    _check_companion("reference_points", reference_points, value)
    points = (batch, num_queries, num_levels, num_axes)
    boxes = (*points[:-1], 2 * num_axes)
    if tuple(reference_points.shape) not in (points, boxes):
        raise ValueError(
            f"reference_points must have shape {list(points)} (points) or {list(boxes)} "
            f"(centre then size), got {list(reference_points.shape)}"
        )


def check_spatial_shapes(spatial_shapes: Sequence[Sequence[int]], num_axes: int) -> int:
    """Checks the level table and returns S, the number of cells of all levels."""
    rule = "spatial_shapes must be a sequence of rows of Python ints, such as [(T, H, W)]"
    if isinstance(spatial_shapes, Tensor):
        raise TypeError(f"{rule}, got a Tensor; reading one from a device would stall it")
    if not isinstance(spatial_shapes, Sequence) or isinstance(spatial_shapes, str):
        raise TypeError(f"{rule}, got {spatial_shapes!r}")
    if len(spatial_shapes) == 0:
        raise ValueError("spatial_shapes must have at least one row, got none")
    total = 0
    for row in spatial_shapes:
        if not isinstance(row, Sequence) or isinstance(row, str):
            raise TypeError(f"{rule}, got {spatial_shapes!r}")
        if len(row) != num_axes:
            raise ValueError(
                f"spatial_shapes rows must have {num_axes} sizes to match the last axis of the "
                f"samples, got {tuple(row)}"
            )
        cells = 1
        for size in row:
            if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
                raise TypeError(
                    f"spatial_shapes must hold Python ints, got {type(size).__name__} in {row!r}"
                )
            if size < 1:
                raise ValueError(f"spatial_shapes sizes must be at least 1, got {tuple(row)}")
            cells = cells * size
        total = total + cells
    return total


def check_mask(name: str, mask: Tensor) -> None:
    """Checks that a padding mask is a bool tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool Tensor, True where there is padding, got {got}")


def _check_samples(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    positions: tuple[str, Tensor],
    scores: tuple[str, Tensor],
) -> None:
    _check_value(value)
    name, tensor = positions
    _check_companion(name, tensor, value)
    if tensor.dim() != 6 or tensor.shape[-1] not in NUM_AXES:
        raise ValueError(
            f"{name} must have shape [B, Q, M, L, K, N] with N = 2 (x, y) or 3 (x, y, t), "
            f"got {list(tensor.shape)}"
        )
    batch, total, num_heads, _ = value.shape
    _, num_queries, _, _, num_points, num_axes = tensor.shape
    num_cells = check_spatial_shapes(spatial_shapes, num_axes)
    if num_cells != total:
        raise ValueError(
            f"value must have as many rows as spatial_shapes has cells, {num_cells}, "
            f"got {total} in value of shape {list(value.shape)}"
        )
    if num_points < 1:
        raise ValueError(f"{name} must have K >= 1 points, got shape {list(tensor.shape)}")
    expected = (batch, num_queries, num_heads, len(spatial_shapes), num_points, num_axes)
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{name} must have shape {list(expected)} to match value and spatial_shapes, "
            f"got {list(tensor.shape)}"
        )
    score_name, score = scores
    _check_companion(score_name, score, value)
    if tuple(score.shape) != expected[:-1]:
        raise ValueError(
            f"{score_name} must have shape {list(expected[:-1])} to match {name}, "
            f"got {list(score.shape)}"
        )


def _check_value(value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a Tensor, got {type(value).__name__}")
    if value.dim() != 4 or value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(
            f"value must have shape [B, S, M, D] with M and D >= 1, got {list(value.shape)}"
        )
    if value.dtype not in VALUE_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in VALUE_DTYPES)
        raise TypeError(f"value must be one of {names}, got {value.dtype}")


def _check_companion(name: str, tensor: Tensor, value: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dtype != value.dtype and tensor.dtype != torch.float32:
        raise TypeError(
            f"{name} must be float32 or of value's dtype, {value.dtype}, got {tensor.dtype}"
        )
    if tensor.device != value.device:
        raise ValueError(f"{name} must be on value's device, {value.device}, got {tensor.device}")
