"""Which way a call takes: straight to the kernel, to the registered operator, or to torch.func.

The straight way, the fast path, saves 5 of the 16 microseconds of host time of a small call. It
is taken where PyTorch's dispatcher would do nothing but find the kernel. To find that out takes
private symbols of PyTorch, and every one that the package uses is here, except the raw stream in
`_native` and the table of decompositions in `_ops`. Where a PyTorch lacks one, all calls take the
public way, with the same results; a compiler then takes the reference where it cannot tell whether
a call is transformed.

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

try:
    from torch._C import (
        DispatchKey,  # names of what can act on a call: backends, autograd, autocast
        DispatchKeySet,  # sets of them, for the sets that plain tensors have
        _dispatch_keys,  # the set of a tensor: lazily negated, sparse and meta tensors have others
        _get_tracing_state,  # whether torch.jit.trace records the call
        _is_any_autocast_enabled,  # whether autocast is on for any device
        _len_torch_dispatch_stack,  # how many TorchDispatchModes see the call
        _len_torch_function_stack,  # how many TorchFunctionModes see it
    )
    from torch._C._autograd import _profiler_enabled  # whether a profiler records the call

    def _plain_keys() -> frozenset[int]:
        """The key sets of tensors with data in their memory; inference mode has fewer keys."""
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
    fast_path = _sees_transforms
    may_autocast: Callable[[], bool] = _is_any_autocast_enabled
except (ImportError, AttributeError):
    fast_path = False

    def may_autocast() -> bool:
        """Whether autocast may be on for some device, so that it pays to ask for the value's."""
        return True


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
    if (
        # No subclass, no recording by autograd, no active mode, profiler or trace, plain memory:
        # the dispatcher would only look the kernel up.
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
    if _get_tracing_state():
        return _tracing.attend(True, *inputs)
    return _ops.st_deform_attn(*inputs)


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
