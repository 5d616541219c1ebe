"""Level tables, reference grids and valid ratios, which an encoder needs besides the operator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _proxies

__all__ = ["level_starts", "num_cells", "reference_grid", "valid_ratios"]


def num_cells(shape: Sequence[int]) -> int:
    """The number of cells of one level of the given sizes, (T, H, W), (H, W) or (T,).

    Raises:
        TypeError: `shape` is a Tensor or does not hold ints.
        ValueError: It has another number of axes, or a size below 1.
    """
    try:
        _checks.check_shape("shape", shape)
    except TypeError as error:
        node: int = _proxies.as_node(error, num_cells, shape)
        return node
    return product(shape)


def level_starts(spatial_shapes: Sequence[Sequence[int]]) -> list[int]:
    """The row of `value` at which each level starts; the first is 0.

    Args:
        spatial_shapes: One row of sizes per level, (T, H, W), (H, W) or (T,).

    Returns:
        L row numbers.

    Raises:
        TypeError: `spatial_shapes` is a Tensor or does not hold ints.
        ValueError: It has no row, or rows of different lengths, or a size below 1.

    Example:
        >>> level_starts([(4, 6, 5), (4, 3, 3)])
        [0, 120]
    """
    try:
        _num_axes(spatial_shapes)
    except TypeError as error:
        node: list[int] = _proxies.as_node(error, level_starts, spatial_shapes)
        return node
    return [0, *itertools.accumulate(map(product, spatial_shapes))][:-1]


def reference_grid(
    spatial_shapes: Sequence[Sequence[int]],
    valid_ratios: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Reference points of an encoder, in which every cell of every level is a query.

    Cell i of an axis of `size` cells has its centre at (i + 0.5) / size. With `valid_ratios` a
    query refers to the same place of the *valid* part of each level: the centre is divided by
    the ratio of its own level and multiplied by the ratio of the level that is read, as in
    Deformable DETR. A query on padding is then outside its own valid part.

    Args:
        spatial_shapes: One row of Python ints per level, (T, H, W), (H, W) or (T,).
        valid_ratios: The part of each axis that is not padding, in (0, 1], order (x, y, t):
            [B, L, N], or [B, N] for the same ratios on every level. See `valid_ratios`.
        device: Where the grid goes; by default where `valid_ratios` is, else PyTorch's default.
        dtype: The grid's dtype, floating. Keep float32 with half values: bfloat16 cannot tell
            neighbouring cells of a level of more than 128 cells apart.

    Returns:
        [B, S, L, N] as (x, y, t), (x, y) or (t,) in fractions of each level's size; B is 1 without
        `valid_ratios`. The modules broadcast it over the batch.

    Raises:
        TypeError: `spatial_shapes` is a Tensor or does not hold ints, `valid_ratios` is no Tensor,
            or `dtype` is not a floating one.
        ValueError: `spatial_shapes` or `valid_ratios` breaks its shape rule.

    Example:
        >>> reference_grid([(1, 2)])[0, :, 0]
        tensor([[0.2500, 0.5000],
                [0.7500, 0.5000]])
    """
    try:
        num_axes = _num_axes(spatial_shapes)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        if valid_ratios is not None:
            _checks.check_tensor("valid_ratios", valid_ratios)
    except TypeError as error:
        node: Tensor = _proxies.as_node(
            *(error, reference_grid, spatial_shapes, valid_ratios), device=device, dtype=dtype
        )
        return node
    num_levels = len(spatial_shapes)
    if device is None and valid_ratios is not None:
        device = valid_ratios.device
    real = torch.promote_types(dtype, torch.float32)  # half would lose cells before rounding
    centres = [_cell_centres(shape, device, real) for shape in spatial_shapes]
    if valid_ratios is None:
        grid = torch.cat(centres)[None, :, None].expand(-1, -1, num_levels, -1)
        return grid.to(dtype)
    ratios = valid_ratios.to(device=device, dtype=real)
    if ratios.dim() == 2:
        ratios = ratios[:, None].expand(-1, num_levels, -1)
    if ratios.dim() != 3 or tuple(ratios.shape[1:]) != (num_levels, num_axes):
        raise ValueError(
            f"valid_ratios must have shape [B, {num_levels}, {num_axes}] or [B, {num_axes}] to "
            f"match spatial_shapes, got {list(valid_ratios.shape)}"
        )
    own = [centre / ratios[:, level, None] for level, centre in enumerate(centres)]
    return (torch.cat(own, 1)[:, :, None] * ratios[:, None]).to(dtype)


def valid_ratios(padding_mask: Tensor) -> Tensor:
    """The part of each axis of one level that is not padding.

    Padding must be at the right, the bottom and the end only, so that the valid part of a
    row is a box that starts at the first cell; the ratio of an axis is the number of slices
    across it that hold a valid cell, divided by its size. A row that is nothing but padding
    has ratio 1 on every axis: its values are zero anyway, and its reference points stay finite.

    Args:
        padding_mask: [B, T, H, W], [B, H, W] or [B, T], bool, True where the level is padding.

    Returns:
        [B, N] in (0, 1], order (x, y, t), (x, y) or (t,), float32. Stack those of all levels along
        axis 1 for `reference_grid`.

    Raises:
        TypeError: `padding_mask` is not a bool Tensor.
        ValueError: `padding_mask` has another number of axes, or an axis without cells.
    """
    try:
        _checks.check_mask("padding_mask", padding_mask)
    except TypeError as error:
        node: Tensor = _proxies.as_node(error, valid_ratios, padding_mask)
        return node
    if padding_mask.dim() - 1 not in _checks.NUM_AXES or 0 in padding_mask.shape[1:]:
        raise ValueError(
            "padding_mask must have shape [B, T, H, W], [B, H, W] or [B, T] with sizes of at least "
            f"1, got {list(padding_mask.shape)}"
        )
    axes = range(1, padding_mask.dim())
    ratios = []
    for axis in reversed(axes):
        size = padding_mask.shape[axis]
        others = [other for other in axes if other != axis]
        valid = ~padding_mask.all(others) if others else ~padding_mask  # [B, size]
        count = valid.sum(1)
        ratios.append(torch.where(count > 0, count, size).to(torch.float32) / size)
    return torch.stack(ratios, -1)


def product(shape: Sequence[int]) -> int:
    """The product of sizes that have been checked; a loop, because torch.compile follows it."""
    cells = 1
    for size in shape:
        cells *= size
    return cells


def _num_axes(spatial_shapes: Sequence[Sequence[int]]) -> int:
    """Checks the level table without a tensor beside it and returns N."""
    rows = spatial_shapes if isinstance(spatial_shapes, Sequence) else ()
    lengths = {len(row) for row in rows if isinstance(row, Sequence)}
    num_axes = next(iter(lengths), 3)  # without rows: check_spatial_shapes says so
    if len(lengths) > 1 or num_axes not in _checks.NUM_AXES:
        raise ValueError(
            "spatial_shapes rows must all be (T, H, W), all be (H, W) or all be (T,), got "
            f"{list(map(tuple, spatial_shapes))}"
        )
    _checks.check_spatial_shapes(spatial_shapes, num_axes)
    return num_axes


def _cell_centres(
    shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype
) -> Tensor:  # [S_l, N] as (x, y, t)
    axes = [(torch.arange(size, device=device, dtype=dtype) + 0.5) / size for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)
