"""Which way a call takes: straight to the kernel, to the registered operator, or to torch.func.

The straight way, the fast path, is taken where PyTorch's dispatcher would do nothing but find the
kernel and, where gradients are asked for, record the call for autograd. To find that out takes
private symbols of PyTorch, and every one that the package uses is here, except the raw stream in
`_native` and the table of decompositions in `_ops`. Where a PyTorch lacks one, all calls take the
public way, with the same results: a small call in 53 microseconds instead of 11, and with its
backward in 245 instead of 74. A compiler then takes the reference where it cannot tell whether a
call is transformed.

To switch the fast path off: `stdeform._dispatch.fast_path = False`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import _native, _ops, _tracing, _transforms, export, reference

try:
    from torch._C import _are_functorch_transforms_active  # whether torch.func transforms the call

    forward_ad._current_level  # noqa: B018  at least 0 where there may be tangents
    _sees_transforms = True
except (ImportError, AttributeError):
    _sees_transforms = False


def _always() -> bool:
    return True


# Whether autocast may be on for some device, so that it pays to ask for the value's.
may_autocast: Callable[[], bool] = _always
try:
    from torch._C import (
        DispatchKey,  # names of what can act on a call: backends, autograd, autocast
        _dispatch_tls_is_dispatch_key_excluded,  # whether a caller is below autograd already
        _get_tracing_state,  # whether torch.jit.trace records the call
        _is_any_autocast_enabled,  # whether autocast is on for any device
        _len_torch_dispatch_stack,  # how many TorchDispatchModes see the call
        _len_torch_function_stack,  # how many TorchFunctionModes see it
    )
    from torch._C._autograd import _profiler_enabled  # whether a profiler records the call

    _AUTOGRAD = DispatchKey.AutogradFunctionality
    fast_path = _sees_transforms
    if not torch.backends.mps.is_built():  # which "any" leaves out
        may_autocast = _is_any_autocast_enabled
except (ImportError, AttributeError):
    fast_path = False


def attend(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """The operator for `functional`: differentiable by autograd and by torch.func.

    Arguments are those of the registered operator; see `stdeform._ops`.
    """
    inputs = (value, spatial_shapes, reference_points, positions, scores, num_points)
    if is_compiling():
        way = _way_of_a_compiler()
        if way == "form":
            return export.attend(*inputs)
        if way == "exported operator":
            return _ops.st_deform_attn(*_with_points(*inputs))
        if way == "reference":
            return reference.attend(*inputs)
        if way == "transforms":
            return _transforms.attend(*inputs)
        # A compiler keeps the registered operator, with its formulas, as one node.
        return _ops.st_deform_attn(*inputs)
    if not fast_path:
        return _attend_publicly(*inputs)
    if forward_ad._current_level >= 0:  # the kernels would drop tangents
        return reference.attend(*inputs)
    if _are_functorch_transforms_active():
        return _transforms.attend(*inputs)
    # The dispatcher would only record the call for autograd and look the kernel up.
    if _are_plain(value, reference_points, positions, scores) and not _is_observed():
        try:
            if torch.is_grad_enabled() and _is_recorded(value, reference_points, positions, scores):
                recorded: Tensor = _record(*inputs)
                return recorded
            return _native.forward(*inputs)
        except (RuntimeError, ValueError):
            pass  # refused by the core: the dispatcher knows what to do with it, or says why not
    if _get_tracing_state():
        return _tracing.attend(True, *inputs)
    return _ops.st_deform_attn(*inputs)


def _are_plain(
    value: Tensor, reference_points: Tensor | None, positions: Tensor, scores: Tensor
) -> bool:
    """Whether tensors are no subclass, and their numbers are what lies in memory, if anything does.

    The core refuses tensors without numbers in memory, as meta and sparse tensors are. It cannot
    see a view of the negatives.
    """
    return (
        type(value) is type(positions) is type(scores) is Tensor
        and not (value.is_neg() or positions.is_neg() or scores.is_neg())
        and (
            reference_points is None
            or (type(reference_points) is Tensor and not reference_points.is_neg())
        )
    )


def _is_observed() -> bool:
    """Whether a mode, profiler or trace has to see the operator."""
    return (
        _len_torch_function_stack() > 0
        or _len_torch_dispatch_stack() > 0
        or _profiler_enabled()
        or _get_tracing_state() is not None
    )


def _is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd, with gradients enabled, records a call of these tensors."""
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            # A kernel of somebody else's operator is below autograd, with gradients enabled.
            return not _dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    return False


class StDeformAttn(torch.autograd.Function):
    """A recorded call of plain tensors: what is registered for autograd, at less cost per call.

    The name is that of the node in a graph.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _native.forward(*inputs)
        _ops.save_forward(ctx, inputs, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _ops.Grads:
        return _ops.forward_vjp(ctx, grad_out, _backward)


# What `apply` comes to for plain tensors: it asks for transforms, and for tensors left by them.
_record = getattr(super(torch.autograd.Function, StDeformAttn), "apply", StDeformAttn.apply)


def _backward(grad_out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """The registered backward, of its arguments, for what `StDeformAttn` has saved.

    Modes may be active that were not at the forward, and of what was plain there hooks may have
    made something else.
    """
    value, _, reference_points, positions, scores, *_ = inputs
    if not (
        is_compiling()
        or forward_ad._current_level >= 0
        or _are_functorch_transforms_active()
        or torch.is_grad_enabled()
        or type(grad_out) is not Tensor
        or grad_out.is_neg()
        or not _are_plain(value, reference_points, positions, scores)
        or _is_observed()
    ):
        try:
            return _native.backward(grad_out, *inputs)
        except (RuntimeError, ValueError):
            pass  # as in `attend`
    return _ops.st_deform_attn_backward(grad_out, *inputs)


def _way_of_a_compiler() -> str:
    """The way of a call that is being compiled, by what transforms it now.

    Dynamo enters transforms and dual levels while it traces, and guards its result by them. It
    cannot follow an autograd.Function under a transform, so a call of one stays opaque to it and
    is traced below it, by AOTAutograd, under the same transforms.
    """
    if export.is_due_in_program():
        return "form"
    torch.compiler.allow_in_graph(_transforms.attend)
    if not _sees_transforms or forward_ad._current_level >= 0:
        return "reference"
    if _are_functorch_transforms_active():
        return "transforms"
    return "exported operator" if export.is_exporting() else "operator"


# A compiler takes what it returns for a constant; see `_native._missing_on_cuda`.
_way_of_a_compiler._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _with_points(*inputs: Any) -> tuple[Any, ...]:
    """The same call with the points of each level, without which AOTInductor refuses it."""
    *others, positions, scores, num_points = inputs
    if num_points or not isinstance(positions.shape[4], int):
        return inputs
    num_points = [positions.shape[4]] * positions.shape[3]
    return *others, positions.flatten(3, 4), scores.flatten(3), num_points


def _attend_publicly(*inputs: Any) -> Tensor:
    """The same without private symbols: slower, because it prepares for a transform every time."""
    # A trace keeps operators, but not what an autograd.Function does.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _tracing.attend(True, *inputs)
    tensors = (tensor for tensor in inputs if isinstance(tensor, Tensor))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return reference.attend(*inputs)
    return _transforms.attend(*inputs)
