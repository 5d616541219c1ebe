"""The operator under torch.func: its formulas in the form that transforms take, and vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import _ops


def attend(*inputs: Any) -> Tensor:
    """The registered operator, with its arguments, for a call that may be transformed."""
    transformed: Any = _Attend.apply
    return cast(Tensor, transformed(*inputs))


# The formulas again, because torch.func's transforms refuse those of register_autograd. They want
# `setup_context`, with which an autograd.Function costs more per call than that of `_dispatch`.


class _Attend(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.st_deform_attn(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _ops.save_forward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _ops.Grads:
        return _ops.forward_vjp(ctx, grad_out, _AttendBackward.apply)


class _AttendBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.st_deform_attn_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _ops.save_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> _ops.Grads:
        return _ops.backward_vjp(ctx, *cotangents)


# -- vmap: the mapped axis joins the batch -----------------------------------------------------


def _call_folded(
    operator: Callable[..., Any], size: int, in_dims: Sequence[Any], arguments: Sequence[Any]
) -> Any:
    """Calls an operator with the mapped axis, of this size, folded into the batch of tensors."""
    folded = [
        (
            argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        ).flatten(0, 1)
        if isinstance(argument, Tensor)
        else argument
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    return operator(*folded)


@torch.library.register_vmap("stdeform::st_deform_attn")
def _(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    out = _call_folded(_ops.st_deform_attn, info.batch_size, in_dims, arguments)
    return out.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("stdeform::st_deform_attn_backward")
def _(
    info: Any, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    grads = _call_folded(_ops.st_deform_attn_backward, info.batch_size, in_dims, arguments)
    needs = arguments[-1]
    mapped = tuple(
        grad.unflatten(0, (info.batch_size, -1)) if needed else grad
        for grad, needed in zip(grads, needs, strict=True)
    )
    return mapped, tuple(0 if needed else None for needed in needs)
