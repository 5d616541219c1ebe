"""The operator where no tensor of the tests lies: on a GPU, or as CUDA sources on the processor.

Both take and return tensors of the CPU, with gradients, so that every test of results runs there
too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stdeform
from tests.cuda_on_cpu import emulated

# -- on a GPU ----------------------------------------------------------------------------------


class OnCuda(torch.autograd.Function):
    """A copy on the GPU with the memory layout of the original, which `.cuda()` would change."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        count = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory = tensor.as_strided((count,), (1,), 0).cuda()
        return memory.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.cpu()


def on_cuda(form: str) -> Callable[..., Tensor]:
    """The operator of this form, on the GPU."""
    function: Callable[..., Tensor] = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )

    def call(*args: Any) -> Tensor:
        moved = [OnCuda.apply(arg) if isinstance(arg, Tensor) else arg for arg in args]
        return function(*moved, backend="native").cpu()

    return call


# -- CUDA sources on the processor -------------------------------------------------------------


class Emulated(torch.autograd.Function):
    """The CUDA kernels on NumPy arrays; what surrounds them in `stdeform._native` is done here."""

    @staticmethod
    def forward(
        ctx: Any,
        spatial_shapes: Sequence[Sequence[int]],
        value: Tensor,
        reference_points: Tensor | None,
        positions: Tensor,
        scores: Tensor,
    ) -> Tensor:
        ctx.spatial_shapes = spatial_shapes
        ctx.save_for_backward(value, reference_points, positions, scores)
        inputs = _inputs(spatial_shapes, value, reference_points, positions, scores)
        if inputs.value.size == 0 or inputs.positions.size == 0:  # nothing is launched
            return value.new_empty(value.shape[0], positions.shape[1], value.shape[2:].numel())
        return _tensor(emulated.forward(inputs), value.dtype).flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, reference_points, positions, scores = ctx.saved_tensors
        inputs = _inputs(ctx.spatial_shapes, *ctx.saved_tensors)
        tensors = {
            "value": value,
            "reference": reference_points,
            "positions": positions,
            "scores": scores,
        }
        needs = [name for name, need in zip(tensors, ctx.needs_input_grad[1:], strict=True) if need]
        if grad_out.numel() == 0:
            grads = {name: torch.zeros_like(tensors[name]) for name in needs}
        else:
            rows = _array(_unit_stride(grad_out.unflatten(2, value.shape[2:])))
            found = emulated.backward(inputs, rows, needs=needs)
            grads = {
                name: (
                    _tensor(grad, tensors[name].dtype)
                    if name == "positions"
                    else torch.from_numpy(grad).to(tensors[name].dtype)
                )
                for name, grad in found.items()
            }
        return None, *(grads.get(name) for name in tensors)


def on_emulator(form: str) -> Callable[..., Tensor]:
    """The operator of this form, by the CUDA sources on the processor."""

    def call(value: Tensor, spatial_shapes: Sequence[Sequence[int]], *rest: Tensor) -> Tensor:
        reference_points = None if form == "locations" else rest[0]
        out: Tensor = Emulated.apply(spatial_shapes, value, reference_points, *rest[-2:])
        return out

    return call


def _inputs(
    spatial_shapes: Sequence[Sequence[int]],
    value: Tensor,
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> emulated.Inputs:
    return emulated.Inputs(
        tuple(tuple(row) for row in spatial_shapes),
        _array(_unit_stride(value)),
        _array(positions),
        _array(scores),
        None if reference_points is None else _array(reference_points),
    )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _array(tensor: Tensor) -> emulated.Array:
    """The same memory as an array; bfloat16, which NumPy has not, as uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array: emulated.Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
