"""The functions of the compiled extension `MultiScaleDeformableAttention`, under their names.

`enable()` puts this module into `sys.modules` under the extension's name. In both functions N is 1,
2 or 3 by the columns of `spatial_shapes`. Unlike those of the extension, they take any batch size,
any strides, tensors on any device and float16 and bfloat16, and can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks, functional, reference
from .. import _arguments
from .._arguments import Shapes

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


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
    return _arguments.attend(value, spatial_shapes, level_start_index, sampling_loc, attn_weight)


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
    inputs = _arguments.promoted(value, sampling_loc, attn_weight)
    sizes, locations = _arguments.read(inputs[0], spatial_shapes, level_start_index, *inputs[1:])
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
