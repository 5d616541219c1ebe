"""The operator away from the tests' tensors: on a GPU, as CUDA sources, or on another machine.

All take and return tensors of the CPU, with gradients, so that every test of results runs there
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stdeform
from tests.cross.machines import Calls
from tests.cuda.emulated_gpu import DEVICE
from tests.cuda.emulator import emulated

# -- on a GPU ----------------------------------------------------------------------------------


def to_gpu(tensor: Tensor) -> Tensor:
    """A copy with the memory layout of the original, which `.cuda()` would change.

    The contents of gaps are copied too, except for gaps so large that they are unwritten.
    """
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    where = tensor.size(), tensor.stride(), tensor.storage_offset()
    if tensor.untyped_storage().nbytes() < 2**26:
        return tensor.as_strided((count,), (1,), 0).to(DEVICE, copy=True).as_strided(*where)
    memory = torch.empty(count, dtype=tensor.dtype, device=DEVICE)
    # An expanded axis is one place in memory, to be written once.
    once = tuple(slice(None) if stride else slice(1) for stride in tensor.stride())
    copy = memory.as_strided(*where)
    copy[once] = tensor[once].to(DEVICE)
    return copy


class ToGpu(torch.autograd.Function):
    """`to_gpu`, forward and backward of `FromGpu`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return to_gpu(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        back: Tensor = FromGpu.apply(grad)
        return back


class FromGpu(torch.autograd.Function):
    """Back to the CPU; the gradient keeps its memory layout on its way to the GPU."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.to("cpu", copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        back: Tensor = ToGpu.apply(grad)
        return back


def on_gpu(form: str) -> Callable[..., Tensor]:
    """The operator of this form, on the GPU or on the emulated one."""
    function: Callable[..., Tensor] = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )

    def call(*args: Any, num_points: Sequence[int] | None = None) -> Tensor:
        moved = [ToGpu.apply(arg) if isinstance(arg, Tensor) else arg for arg in args]
        out: Tensor = FromGpu.apply(function(*moved, num_points=num_points, backend="native"))
        return out

    return call


# -- CUDA sources on the processor -------------------------------------------------------------


class Emulated(torch.autograd.Function):
    """The CUDA kernels on NumPy arrays; what surrounds them in `stdeform._native` is done here."""

    machine = emulated.PLAIN  # see `on_machine`

    @staticmethod
    def forward(
        ctx: Any,
        spatial_shapes: Sequence[Sequence[int]],
        num_points: Sequence[int] | None,
        value: Tensor,
        reference_points: Tensor | None,
        positions: Tensor,
        scores: Tensor,
    ) -> Tensor:
        ctx.tables = spatial_shapes, num_points
        ctx.save_for_backward(value, reference_points, positions, scores)
        inputs = _inputs(*ctx.tables, value, reference_points, positions, scores)
        return _tensor(emulated.forward(inputs, Emulated.machine), value.dtype).flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        names = ("value", "reference", "positions", "scores")
        tensors = dict(zip(names, ctx.saved_tensors, strict=True))
        needs = [name for name, need in zip(names, ctx.needs_input_grad[2:], strict=True) if need]
        if grad_out.numel() == 0:
            return (
                None,
                None,
                *(torch.zeros_like(tensors[n]) if n in needs else None for n in names),
            )
        rows = _array(_unit_stride(grad_out.unflatten(2, tensors["value"].shape[2:])))
        inputs = _inputs(*ctx.tables, *ctx.saved_tensors)
        found = emulated.backward(inputs, rows, Emulated.machine, needs)
        # Rounded as `stdeform` rounds them, once; the positions' come rounded.
        grads = {
            name: (
                _tensor(grad, torch.bfloat16)
                if grad.dtype == np.uint16
                else torch.from_numpy(grad).to(tensors[name].dtype)
            ).view(tensors[name].shape)
            for name, grad in found.items()
        }
        return None, None, *(grads.get(name) for name in names)


@contextlib.contextmanager
def on_machine(machine: emulated.Machine) -> Iterator[None]:
    """Lets another machine than the plain one run the kernels meanwhile."""
    before = Emulated.machine
    Emulated.machine = machine
    try:
        yield
    finally:
        Emulated.machine = before


def on_emulator(form: str) -> Callable[..., Tensor]:
    """The operator of this form, by the CUDA sources on the processor."""
    return _by_function(Emulated, form)


def _inputs(
    spatial_shapes: Sequence[Sequence[int]],
    num_points: Sequence[int] | None,
    value: Tensor,
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
) -> emulated.Inputs:
    num_points, positions, scores = _join_levels(spatial_shapes, num_points, positions, scores)
    return emulated.Inputs(
        tuple(tuple(row) for row in spatial_shapes),
        tuple(num_points),
        _array(_unit_stride(value)),
        _array(positions),
        _array(scores),
        None if reference_points is None else _array(reference_points),
    )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _array(tensor: Tensor) -> emulated.Array:
    """The same memory as an array; bfloat16, which NumPy has not, as uint16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _tensor(array: emulated.Array, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# -- CPU kernels on an emulated machine --------------------------------------------------------


class CrossCompiled(torch.autograd.Function):
    """The kernels of csrc/cpu, compiled for the machine and run by its emulator."""

    calls: Calls  # the fixture `machine` starts them

    @staticmethod
    def forward(
        ctx: Any,
        spatial_shapes: Sequence[Sequence[int]],
        num_points: Sequence[int] | None,
        value: Tensor,
        reference_points: Tensor | None,
        positions: Tensor,
        scores: Tensor,
    ) -> Tensor:
        ctx.shapes = positions.shape, scores.shape
        num_points, *samples = _join_levels(spatial_shapes, num_points, positions, scores)
        ctx.tables = spatial_shapes, num_points
        inputs = (value, reference_points, *samples)
        ctx.save_for_backward(*inputs)
        batch, _, num_heads, head_dim = value.shape
        out = value.new_empty(batch, positions.shape[1], num_heads * head_dim)
        CrossCompiled.calls.run(inputs, ctx.tables, [out])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        grads = [
            torch.empty(tensor.shape, dtype=tensor.dtype) if need else None
            for tensor, need in needs
        ]
        CrossCompiled.calls.run([*ctx.saved_tensors, grad_out], ctx.tables, grads)
        value, reference_points, *samples = grads
        of_samples = [
            None if grad is None else grad.view(shape)
            for grad, shape in zip(samples, ctx.shapes, strict=True)
        ]
        return None, None, value, reference_points, *of_samples


def cross_compiled(form: str) -> Callable[..., Tensor]:
    """The operator of this form, by the cross-compiled kernels on an emulated machine."""
    return _by_function(CrossCompiled, form)


# -- both ----------------------------------------------------------------------------------------


def _by_function(function: type[torch.autograd.Function], form: str) -> Callable[..., Tensor]:
    def call(
        value: Tensor,
        spatial_shapes: Sequence[Sequence[int]],
        *rest: Tensor,
        num_points: Sequence[int] | None = None,
    ) -> Tensor:
        reference_points = None if form == "locations" else rest[0]
        tables = spatial_shapes, num_points
        out: Tensor = function.apply(*tables, value, reference_points, *rest[-2:])
        return out

    return call


def _join_levels(
    spatial_shapes: Sequence[Sequence[int]],
    num_points: Sequence[int] | None,
    positions: Tensor,
    scores: Tensor,
) -> tuple[Sequence[int], Tensor, Tensor]:
    """The points of each level, and samples with one axis for those of all levels."""
    if num_points is not None:
        return num_points, positions, scores
    num_points = (positions.shape[4],) * len(spatial_shapes)
    return num_points, positions.flatten(3, 4), scores.flatten(3)
