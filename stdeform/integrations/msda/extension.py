"""The functions of the compiled extension `MultiScaleDeformableAttention`, under their names.

`enable()` puts this module into `sys.modules` under the extension's name. In both functions N is 1,
2 or 3 by the columns of `spatial_shapes`. Unlike those of the extension, they take any batch size,
any strides, tensors on any device and float16 and bfloat16, and can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks, _layer_checks, functional, reference
from ..._shape_tensors import read_rows

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]

Shapes = Sequence[Sequence[int]] | Tensor


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Deformable attention over given locations and weights; see `stdeform.st_deform_attn`.

    Tensors of different dtypes are promoted as PyTorch promotes, under autocast too.

    Args:
        value: [B, S, M, D], floating.
        spatial_shapes: One row per level, (T,), (H, W) or (T, H, W): an integer tensor [L, N] or
            Python ints. A tensor on a device is read once, and again after it has changed.
        level_start_index: The row of `value` at which each level starts, one level right after the
            other; checked on the CPU, trusted on a device, not needed.
        sampling_loc: [B, Q, M, L, K, N] as (t,), (x, y) or (x, y, t) in fractions of the level's
            size.
        attn_weight: [B, Q, M, L, K].
        im2col_step: Means nothing here: any batch size works.

    Returns:
        [B, Q, M * D] in the promoted dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, size, level start or device breaks its rule.
        RuntimeError: `spatial_shapes` has to be read while a CUDA graph is captured.
    """
    value, sampling_loc, attn_weight = _promoted(value, sampling_loc, attn_weight)
    sizes, sampling_loc = _read(value, spatial_shapes, level_start_index, sampling_loc, attn_weight)
    return functional.attend(value, sizes, None, sampling_loc, attn_weight, (), "auto")


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    im2col_step: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `ms_deform_attn_forward`, whose other arguments these are.

    Args:
        value: As given to the forward.
        spatial_shapes: As given to the forward.
        level_start_index: As given to the forward.
        sampling_loc: As given to the forward.
        attn_weight: As given to the forward.
        grad_output: [B, Q, M * D], floating.
        im2col_step: Means nothing here.

    Returns:
        The gradients of `value`, `sampling_loc` and `attn_weight`, each in the dtype of its tensor.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, size, level start or device breaks its rule.
        RuntimeError: `spatial_shapes` has to be read while a CUDA graph is captured.
    """
    dtypes = [getattr(tensor, "dtype", None) for tensor in (value, sampling_loc, attn_weight)]
    inputs = _promoted(value, sampling_loc, attn_weight)
    sizes, locations = _read(inputs[0], spatial_shapes, level_start_index, *inputs[1:])
    batch, _, num_heads, head_dim = value.shape
    _checks.check_tensor("grad_output", grad_output)
    expected = (batch, sampling_loc.shape[1], num_heads * head_dim)
    if grad_output.shape != expected:
        raise ValueError(
            f"grad_output must have shape {list(expected)} to match value and sampling_loc, "
            f"got {list(grad_output.shape)}"
        )
    if grad_output.device != value.device:
        raise ValueError(
            f"grad_output must be on value's device, {value.device}, got {grad_output.device}"
        )
    grads = _gradients(grad_output.to(inputs[0].dtype), sizes, inputs[0], locations, inputs[2])
    grad_value, grad_loc, grad_weight = (
        grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)
    )
    return grad_value, grad_loc[..., : sampling_loc.shape[-1]], grad_weight


def _gradients(
    grad_output: Tensor, sizes: list[int], value: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    """By the kernel alone where there is one: the forward does not run again."""
    if functional.resolve_backend(value.device.type) == "native":
        grad_value, _, grad_locations, grad_weights = (
            torch.ops.stdeform.st_deform_attn_backward.default(
                grad_output, value, sizes, None, locations, weights, [], [True, False, True, True]
            )
        )
        return grad_value, grad_locations, grad_weights

    def forward(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return reference.attend(value, sizes, None, locations, weights)

    grads: tuple[Tensor, ...] = torch.func.vjp(forward, value, locations, weights)[1](grad_output)
    return grads


def _promoted(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in the dtype that PyTorch gives to a result of all three."""
    named = {"value": value, "sampling_loc": locations, "attn_weight": weights}
    for name, tensor in named.items():
        _checks.check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def _read(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Sequence[int] | Tensor | None,
    locations: Tensor,
    weights: Tensor,
) -> tuple[list[int], Tensor]:
    """Checks the arguments; returns sizes and locations as the kernels take them."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = read_rows("spatial_shapes", spatial_shapes, value)
    sizes = _checks.check_attention(value, spatial_shapes, locations, weights)
    if level_start_index is not None:
        _layer_checks.check_level_starts(
            *("level_start_index", level_start_index, "spatial_shapes", sizes),
            len(spatial_shapes[0]),
        )
    if len(sizes) == len(spatial_shapes):  # N = 1
        return functional.as_images(sizes, locations)
    return sizes, locations
