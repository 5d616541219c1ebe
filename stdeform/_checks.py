"""Every argument check of the operators, and what the layers check in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUM_AXES = (1, 2, 3)
BACKENDS = ("auto", "native", "reference")
_TABLE_NAME = "spatial_shapes"
_ROWS = {1: "(T,)", 2: "(H, W)", 3: "(T, H, W)"}

# Every call pays for the checks: each attribute of a tensor is read once, shapes are compared as
# a whole, and a message is made only for an error.


def compute_dtype(value_dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, softmax and accumulation for a value's dtype."""
    return torch.float64 if value_dtype == torch.float64 else torch.float32


# -- operators ---------------------------------------------------------------------------------


def check_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> list[int]:
    """Checks the arguments of `st_deform_attn`; returns the L * N sizes of the level table."""
    names = ("sampling_locations", "attention_weights")
    sizes, _, _, _ = _check_either_form(
        names, value, spatial_shapes, sampling_locations, attention_weights, num_points
    )
    return sizes


def check_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int] | None = None,
) -> list[int]:
    """Checks the arguments of `st_deform_attn_from_offsets`; returns the table's L * N sizes."""
    names = ("sampling_offsets", "attention_logits")
    sizes, expected, dtype, device = _check_either_form(
        names, value, spatial_shapes, sampling_offsets, attention_logits, num_points
    )
    check_companion("reference_points", reference_points, dtype, device)
    shape, num_axes = reference_points.shape, expected[-1]
    points = (expected[0], expected[1], len(spatial_shapes), num_axes)
    if shape != points and shape != (boxes := (*points[:3], 2 * num_axes)):
        raise ValueError(
            f"reference_points must have shape {list(points)} (points) or {list(boxes)} "
            f"(centre then size), got {list(shape)}"
        )
    return sizes


def check_backend(backend: str) -> None:
    """Checks that it is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def _check_either_form(
    names: tuple[str, str],
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int] | None,
) -> tuple[list[int], tuple[int, ...], torch.dtype, torch.device]:
    """Checks what both forms have.

    Returns:
        The table's sizes, the shape of the positions, and value's dtype and device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(_tensor_rule("value", value))
    shape, dtype, device = value.shape, value.dtype, value.device
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"value must have shape [B, S, M, D] with M and D >= 1, got {list(shape)}")
    if dtype not in VALUE_DTYPES:
        raise TypeError(dtype_rule("value", dtype))
    name, score_name = names
    check_companion(name, positions, dtype, device)
    found = positions.shape
    if len(found) != (6 if num_points is None else 5) or found[-1] not in NUM_AXES:
        raise ValueError(
            f"{name} must have shape [B, Q, M, L, K, N], or [B, Q, M, P, N] with num_points, with "
            f"N = 1 (t), 2 (x, y) or 3 (x, y, t), got {list(found)}"
        )
    batch, total, num_heads, _ = shape
    num_queries, num_axes = found[1], found[-1]
    num_cells, sizes = check_spatial_shapes(spatial_shapes, num_axes, _TABLE_NAME, name)
    if num_cells != total:
        raise ValueError(
            f"value must have as many rows as spatial_shapes has cells, {num_cells}, "
            f"got {total} in value of shape {list(shape)}"
        )
    num_levels = len(spatial_shapes)
    expected: tuple[int, ...]
    if num_points is None:
        expected = (batch, num_queries, num_heads, num_levels, found[4], num_axes)
        if found[4] < 1:
            raise ValueError(f"{name} must have K >= 1 points, got shape {list(found)}")
    else:
        check_num_points(num_points, num_levels)
        expected = (batch, num_queries, num_heads, sum(num_points), num_axes)
    if found != expected:
        raise ValueError(
            f"{name} must have shape {list(expected)} to match value and spatial_shapes, "
            f"got {list(found)}"
        )
    check_companion(score_name, scores, dtype, device)
    if scores.shape != expected[:-1]:
        raise ValueError(
            f"{score_name} must have shape {list(expected[:-1])} to match {name}, "
            f"got {list(scores.shape)}"
        )
    return sizes, expected, dtype, device


def check_num_points(num_points: Sequence[int], num_levels: int, name: str = "num_points") -> None:
    """Checks the points of each level."""
    is_table = _is_sequence(num_points) and all(map(_is_size, num_points))
    if not is_table or len(num_points) != num_levels or min(num_points) < 1:
        raise (ValueError if is_table else TypeError)(
            f"{name} must hold {num_levels} ints of at least 1, one per level, got {num_points!r}"
        )


# -- level tables and masks --------------------------------------------------------------------


def check_spatial_shapes(
    spatial_shapes: Sequence[Sequence[int]],
    num_axes: int,
    name: str = _TABLE_NAME,
    beside: str = "",
) -> tuple[int, list[int]]:
    """Checks the level table.

    Args:
        spatial_shapes: L rows of N Python ints.
        num_axes: N.
        name: The name of the table in messages.
        beside: The argument that N comes from, if one does.

    Returns:
        S, the number of cells of all levels, and all L * N sizes.
    """
    # Lists and tuples without a call.
    if not isinstance(spatial_shapes, (tuple, list)) and not _is_sequence(spatial_shapes):
        raise TypeError(_table_rule(spatial_shapes, num_axes, name))
    if len(spatial_shapes) == 0:
        raise ValueError(f"{name} must have at least one row, got none")
    total = 0
    sizes: list[int] = []
    for row in spatial_shapes:
        if not isinstance(row, (tuple, list)) and not _is_sequence(row):
            raise TypeError(_table_rule(spatial_shapes, num_axes, name))
        if len(row) != num_axes:
            why = f" to match the last axis of {beside}" if beside else ""
            raise ValueError(f"{name} rows must be {_ROWS[num_axes]}{why}, got {tuple(row)}")
        cells = 1
        for size in row:
            if type(size) is not int and not _is_size(size):
                raise TypeError(
                    f"{name} must hold Python ints, got {type(size).__name__} in {row!r}"
                )
            if size < 1:
                raise ValueError(f"{name} sizes must be at least 1, got {tuple(row)}")
            cells *= size
        total += cells
        sizes += row
    return total, sizes


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Checks the sizes of one level."""
    rule = f"{name} must be (T, H, W), (H, W) or (T,) in Python ints of at least 1, got {shape!r}"
    if not _is_sequence(shape) or not all(map(_is_size, shape)):
        raise TypeError(rule)
    if len(shape) not in NUM_AXES or min(shape) < 1:
        raise ValueError(rule)


def check_tensor(name: str, tensor: object) -> None:
    """Checks that an argument is a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(_tensor_rule(name, tensor))


def check_mask(name: str, mask: Tensor) -> None:
    """Checks that a padding mask is a bool tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool Tensor, True where there is padding, got {got}")


# -- parts -------------------------------------------------------------------------------------


def check_companion(
    name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device, value_name: str = "value"
) -> None:
    """Checks a tensor that is used together with a value of this dtype on this device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(_tensor_rule(name, tensor))
    if tensor.dtype is not dtype and tensor.dtype is not torch.float32:
        raise TypeError(
            f"{name} must be float32 or of {value_name}'s dtype, {dtype}, got {tensor.dtype}"
        )
    if tensor.device != device:
        raise ValueError(f"{name} must be on {value_name}'s device, {device}, got {tensor.device}")


def _tensor_rule(name: str, got: object) -> str:
    return f"{name} must be a Tensor, got {type(got).__name__}"


def dtype_rule(name: str, got: torch.dtype) -> str:
    known = ", ".join(str(dtype).removeprefix("torch.") for dtype in VALUE_DTYPES)
    return f"{name} must be one of {known}, got {got}"


def _table_rule(spatial_shapes: object, num_axes: int, name: str) -> str:
    got = repr(spatial_shapes)
    if isinstance(spatial_shapes, Tensor):
        got = "a Tensor; shapes.tolist() makes rows of it, but waits for its device"
    return (
        f"{name} must be a sequence of rows of Python ints, such as [{_ROWS[num_axes]}], got {got}"
    )


def _is_sequence(rows: object) -> bool:
    # Tuples and lists first: the check against the abstract class is slow.
    return isinstance(rows, (tuple, list)) or (
        isinstance(rows, Sequence) and not isinstance(rows, (str, bytes))
    )


def _is_size(size: object) -> bool:
    if isinstance(size, Tensor):  # what `tensor.shape` holds while torch.jit.trace records
        tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return tracing and not size.dim() and size.dtype is torch.int64
    return isinstance(size, (int, torch.SymInt)) and not isinstance(size, bool)
