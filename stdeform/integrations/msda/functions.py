"""What code of Deformable DETR's family imports from its `functions`."""

from __future__ import annotations

from torch import Tensor

from .._arguments import Shapes
from .extension import ms_deform_attn_forward

__all__ = [
    "MSDeformAttnFunction",
    "ms_deform_attn_core_pytorch",
    "ms_deform_attn_core_pytorch_3D",
]


class MSDeformAttnFunction:
    """Deformable attention, called as `MSDeformAttnFunction.apply(...)` with six arguments.

    No `torch.autograd.Function`, because the operator itself is differentiable, any number of
    times, by autograd and by torch.func. Arguments, result and errors are those of
    `ms_deform_attn_forward`.
    """

    apply = staticmethod(ms_deform_attn_forward)


def ms_deform_attn_core_pytorch(
    value: Tensor,
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same by the signature of the form in plain PyTorch; it runs on the operator, too.

    Args:
        value: [B, S, M, D], floating.
        value_spatial_shapes: One row per level, (T,), (H, W) or (T, H, W), as a tensor or ints.
        sampling_locations: [B, Q, M, L, K, N] as (x, y) or (x, y, t).
        attention_weights: [B, Q, M, L, K].

    Returns:
        [B, Q, M * D] in the promoted dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, size or device breaks its rule.
        RuntimeError: The shapes have to be read while a CUDA graph is captured.
    """
    return ms_deform_attn_forward(
        value, value_spatial_shapes, None, sampling_locations, attention_weights
    )


ms_deform_attn_core_pytorch_3D = ms_deform_attn_core_pytorch  # the name in CoTr
