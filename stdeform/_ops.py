"""The operator as PyTorch sees it: schema, kernels, fake, autograd, vmap; forward, then backward.

One operator serves both public forms. Without `reference_points`, `positions` are sampling
locations and `scores` attention weights; with them, `positions` are sampling offsets and
`scores` attention logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _are_functorch_transforms_active,
    _dispatch_keys,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import _native, reference

_Grads = tuple[Tensor | None, ...]

# -- schema ------------------------------------------------------------------------------------

_INPUTS = (
    "Tensor value, SymInt[] spatial_shapes, Tensor? reference_points, Tensor positions, "
    "Tensor scores"
)
torch.library.define(
    "stdeform::st_deform_attn",
    f"({_INPUTS}) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "stdeform::st_deform_attn_backward",
    f"(Tensor grad_out, {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
st_deform_attn: Callable[..., Tensor] = torch.ops.stdeform.st_deform_attn.default
st_deform_attn_backward = torch.ops.stdeform.st_deform_attn_backward.default

# -- kernels -----------------------------------------------------------------------------------

torch.library.impl("stdeform::st_deform_attn", ("cpu", "cuda"), _native.forward)
torch.library.impl("stdeform::st_deform_attn_backward", ("cpu", "cuda"), _native.backward)

# -- fake --------------------------------------------------------------------------------------


@torch.library.register_fake("stdeform::st_deform_attn")
def _(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> Tensor:
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
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    return _native.empty_grads((value, reference_points, positions, scores), needs)


# -- autograd ----------------------------------------------------------------------------------


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, reference_points, positions, scores = inputs
    ctx.save_for_backward(value, reference_points, positions, scores)


def _forward_vjp(
    ctx: Any, grad_out: Tensor, backward: Callable[..., Any] = st_deform_attn_backward
) -> _Grads:
    value, reference_points, positions, scores = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
    grads = backward(
        grad_out, value, ctx.spatial_shapes, reference_points, positions, scores, needs
    )
    wanted = [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
    return wanted[0], None, *wanted[1:]


torch.library.register_autograd(
    "stdeform::st_deform_attn", _forward_vjp, setup_context=_save_forward
)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, value, ctx.spatial_shapes, reference_points, positions, scores, ctx.needs = inputs
    ctx.save_for_backward(grad_out, value, reference_points, positions, scores)


def _backward_vjp(ctx: Any, *cotangents: Tensor | None) -> _Grads:
    """Second derivatives: the vector-Jacobian product of the reference's own backward."""
    saved = ctx.saved_tensors
    present = [i for i, tensor in enumerate(saved) if tensor is not None]
    asked = [cotangent for cotangent, needed in zip(cotangents, ctx.needs, strict=True) if needed]

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        every: list[Any] = [None] * len(saved)
        for i, tensor in zip(present, tensors, strict=True):
            every[i] = tensor
        grad_out, *inputs = every
        given = [tensor for tensor in inputs if tensor is not None]

        def forward(*tensors: Tensor) -> Tensor:
            remaining = iter(tensors)
            restored: list[Any] = [None if t is None else next(remaining) for t in inputs]
            value, points, positions, scores = restored
            return _reference(value, ctx.spatial_shapes, points, positions, scores)

        grads = iter(torch.func.vjp(forward, *given)[1](grad_out))
        every_grad: list[Any] = [None if tensor is None else next(grads) for tensor in inputs]
        return tuple(grad for grad, needed in zip(every_grad, ctx.needs, strict=True) if needed)

    vjp = torch.func.vjp(backward, *(saved[i] for i in present))[1]
    result: list[Tensor | None] = [None] * len(saved)
    for i, grad in zip(present, vjp(tuple(asked)), strict=True):
        result[i] = grad
    grad_out, value, *rest = result
    return grad_out, value, None, *rest, None


def _reference(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> Tensor:
    num_axes = positions.shape[-1]
    rows = [spatial_shapes[i : i + num_axes] for i in range(0, len(spatial_shapes), num_axes)]
    if reference_points is None:
        return reference.st_deform_attn(value, rows, positions, scores)
    return reference.st_deform_attn_from_offsets(value, rows, reference_points, positions, scores)


torch.library.register_autograd(
    "stdeform::st_deform_attn_backward", _backward_vjp, setup_context=_save_backward
)

# -- calls -------------------------------------------------------------------------------------


def _plain_keys() -> frozenset[int]:
    """The dispatch keys of tensors whose data can be read as they lie in memory.

    Not those of lazily negated, sparse or meta tensors. Tensors made in inference mode have fewer.
    """
    plain = set()
    for device in ("CPU", "CUDA"):
        backend, *rest = (
            DispatchKeySet(getattr(DispatchKey, name))
            for name in (device, f"Autocast{device}", f"Autograd{device}", "ADInplaceOrView")
        )
        plain.add((backend | rest[0]).raw_repr())
        plain.add((backend | rest[0] | rest[1] | rest[2]).raw_repr())
    return frozenset(plain)


_PLAIN = _plain_keys()


def attend(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> Tensor:
    """The operator for `functional`: differentiable by autograd and by torch.func."""
    inputs = (value, spatial_shapes, reference_points, positions, scores)
    # A compiler sees the operator itself, whose formulas are registered, and keeps it as one node.
    if is_compiling():
        return st_deform_attn(*inputs)
    if forward_ad._current_level >= 0:  # the kernels know no tangents and would drop them
        return _reference(*inputs)
    if _are_functorch_transforms_active():
        # An autograd.Function costs more per call, so only where it is needed.
        transformed: Any = _Attend.apply
        return cast(Tensor, transformed(*inputs))
    if (
        # Autograd records nothing, nobody watches, and nothing stands before the kernel: PyTorch
        # would call it, too, but take 5 us of a call's 16 to find that out.
        type(value) is type(positions) is type(scores) is Tensor
        and (reference_points is None or type(reference_points) is Tensor)
        and not (
            torch.is_grad_enabled()
            and (
                value.requires_grad
                or positions.requires_grad
                or scores.requires_grad
                or (reference_points is not None and reference_points.requires_grad)
            )
        )
        and not _len_torch_function_stack()
        and not _len_torch_dispatch_stack()
        and not _profiler_enabled()
        and not _get_tracing_state()
        and _dispatch_keys(value).raw_repr() in _PLAIN
        and _dispatch_keys(positions).raw_repr() in _PLAIN
        and _dispatch_keys(scores).raw_repr() in _PLAIN
        and (reference_points is None or _dispatch_keys(reference_points).raw_repr() in _PLAIN)
    ):
        return _native.forward(*inputs)
    return st_deform_attn(*inputs)


# The formulas again, because torch.func's transforms refuse those of register_autograd.


class _Attend(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        out: Tensor = st_deform_attn(*inputs)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_forward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _Grads:
        return _forward_vjp(ctx, grad_out, _AttendBackward.apply)


class _AttendBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = st_deform_attn_backward(*inputs)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> _Grads:
        return _backward_vjp(ctx, *cotangents)


# -- vmap: the mapped axis joins the batch -----------------------------------------------------


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if tensor is None:
        return None
    moved = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
    return moved.flatten(0, 1)


@torch.library.register_vmap("stdeform::st_deform_attn")
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> tuple[Tensor, int]:
    size = info.batch_size
    out = st_deform_attn(
        _fold(value, in_dims[0], size),
        spatial_shapes,
        _fold(reference_points, in_dims[2], size),
        _fold(positions, in_dims[3], size),
        _fold(scores, in_dims[4], size),
    )
    return out.unflatten(0, (size, -1)), 0


@torch.library.register_vmap("stdeform::st_deform_attn_backward")
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    needs: Sequence[bool],
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size = info.batch_size
    grads = st_deform_attn_backward(
        _fold(grad_out, in_dims[0], size),
        _fold(value, in_dims[1], size),
        spatial_shapes,
        _fold(reference_points, in_dims[3], size),
        _fold(positions, in_dims[4], size),
        _fold(scores, in_dims[5], size),
        needs,
    )
    mapped = tuple(
        grad.unflatten(0, (size, -1)) if needed else grad
        for grad, needed in zip(grads, needs, strict=True)
    )
    return mapped, tuple(0 if needed else None for needed in needs)
