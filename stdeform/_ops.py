"""The operator as PyTorch sees it: schema, kernels, fake, autograd, flops, export.

One operator serves both public forms, and its arguments have these names in every file below
`functional`, in Python and C++. `spatial_shapes` are the L * N sizes of the level table. Without
`reference_points`, `positions` are sampling locations and `scores` attention weights; with them,
`positions` are sampling offsets and `scores` attention logits. `num_points` are those of each
level, or none where `positions` have an axis for levels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.utils.flop_counter import register_flop_formula

from . import _native, export, reference

Grads = tuple[Tensor | None, ...]

# -- schema ------------------------------------------------------------------------------------

_INPUTS = (
    "Tensor value, SymInt[] spatial_shapes, Tensor? reference_points, Tensor positions, "
    "Tensor scores, int[] num_points"
)
# Inductor keeps the strides of an operator's inputs by default, but where the operator is on its
# list (below) only if a tag says so. PyTorch 2.6 has no tag for strides, only for their order.
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
)
torch.library.define("stdeform::st_deform_attn", f"({_INPUTS}) -> Tensor", tags=_TAGS)
torch.library.define(
    "stdeform::st_deform_attn_backward",
    f"(Tensor grad_out, {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
st_deform_attn: Callable[..., Tensor] = torch.ops.stdeform.st_deform_attn.default
st_deform_attn_backward: Callable[..., tuple[Tensor, ...]] = (
    torch.ops.stdeform.st_deform_attn_backward.default
)

# -- kernels -----------------------------------------------------------------------------------

torch.library.impl("stdeform::st_deform_attn", ("cpu", "cuda"), _native.forward)
torch.library.impl("stdeform::st_deform_attn_backward", ("cpu", "cuda"), _native.backward)

# -- fake --------------------------------------------------------------------------------------


@torch.library.register_fake("stdeform::st_deform_attn")
def _fake(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    _keep_whole_in_inductor()
    batch, _, num_heads, head_dim = value.shape
    return value.new_empty(batch, positions.shape[1], num_heads * head_dim)


@torch.library.register_fake("stdeform::st_deform_attn_backward")
def _(
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    return _native.empty_grads((value, reference_points, positions, scores), needs)


# -- autograd ----------------------------------------------------------------------------------


def save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, reference_points, positions, scores, ctx.num_points = inputs
    ctx.save_for_backward(value, reference_points, positions, scores)


def forward_vjp(
    ctx: Any, grad_out: Tensor, backward: Callable[..., Any] = st_deform_attn_backward
) -> Grads:
    value, reference_points, positions, scores = ctx.saved_tensors
    needed = ctx.needs_input_grad
    needs = [needed[0], *needed[2:5]]
    tensors = (value, ctx.spatial_shapes, reference_points, positions, scores)
    grads = backward(grad_out, *tensors, ctx.num_points, needs)
    wanted = [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
    return wanted[0], None, *wanted[1:], None


torch.library.register_autograd("stdeform::st_deform_attn", forward_vjp, setup_context=save_forward)


def save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, value, ctx.spatial_shapes, *others, ctx.num_points, ctx.needs = inputs
    ctx.save_for_backward(grad_out, value, *others)


def backward_vjp(ctx: Any, *cotangents: Tensor | None) -> Grads:
    """Second derivatives: the vector-Jacobian product of the reference's own backward."""
    saved = ctx.saved_tensors

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        grad_out, *inputs = _restore(tensors, saved)

        def forward(*tensors: Tensor) -> Tensor:
            value, points, positions, scores = _restore(tensors, inputs)
            attended = (value, ctx.spatial_shapes, points, positions, scores, ctx.num_points)
            return reference.attend(*attended)

        grads = _restore(torch.func.vjp(forward, *_present(inputs))[1](grad_out), inputs)
        return tuple(grad for grad, needed in zip(grads, ctx.needs, strict=True) if needed)

    requested = tuple(grad for grad, needed in zip(cotangents, ctx.needs, strict=True) if needed)
    vjp = torch.func.vjp(backward, *_present(saved))[1]
    grad_out, value, *rest = _restore(vjp(requested), saved)
    return grad_out, value, None, *rest, None, None


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _restore(present: Iterable[Tensor], like: Sequence[Tensor | None]) -> list[Any]:
    """Puts None back where `like` has it."""
    remaining = iter(present)
    return [None if tensor is None else next(remaining) for tensor in like]


torch.library.register_autograd(
    "stdeform::st_deform_attn_backward", backward_vjp, setup_context=save_backward
)

# -- flops -------------------------------------------------------------------------------------

# What `torch.utils.flop_counter.FlopCounterMode` counts, from the shapes of the arguments.


@register_flop_formula(torch.ops.stdeform.st_deform_attn)
def _(
    value: Sequence[int],  # shapes of the arguments
    spatial_shapes: Sequence[int],
    reference_points: Sequence[int] | None,
    positions: Sequence[int],
    scores: Sequence[int],
    num_points: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    """A multiplication and an addition per sample, corner and channel."""
    return 2 * _corner_channels(value, positions)


@register_flop_formula(torch.ops.stdeform.st_deform_attn_backward)
def _(
    grad_out: Sequence[int],
    value: Sequence[int],
    spatial_shapes: Sequence[int],
    reference_points: Sequence[int] | None,
    positions: Sequence[int],
    scores: Sequence[int],
    num_points: Sequence[int],
    needs: Sequence[bool],
    *args: Any,
    **kwargs: Any,
) -> int:
    """As many for the gradient of the value, and as many for all others together."""
    return 2 * _corner_channels(value, positions) * (needs[0] + any(needs[1:]))


def _corner_channels(value: Sequence[int], positions: Sequence[int]) -> int:
    *samples, axes = positions
    corners: int = 2**axes
    return math.prod(samples) * corners * value[-1]


# -- export ------------------------------------------------------------------------------------

# `torch.onnx.export` takes the decomposition where nobody translates the operator; all others keep
# it whole. With symbolic sizes PyTorch would also derive shapes and strides from a decomposition,
# instead of from the fake, if there were no entry beside it for "meta".
register_decomposition(st_deform_attn)(export.attend)
register_decomposition(st_deform_attn, type="meta")(_fake)


def _keep_whole_in_inductor() -> None:
    """Puts the operator on Inductor's list of those that it calls as they are.

    For the fake to call: a graph's fakes run when Inductor is loaded, which an import of ours must
    not do, and before it lowers the graph. With $CI set, as on GitHub's runners, it raises an
    AssertionError for any other operator that has a decomposition and no lowering.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    allowed: set[str] = getattr(lowering, "FALLBACK_ALLOW_LIST", set())
    allowed.add("stdeform::st_deform_attn")
