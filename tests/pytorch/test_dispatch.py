"""What sees a call: modes, subclasses, profiler, autograd; and which calls take the short way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stdeform import _ops
from tests.support.cases import (
    FORMS,
    arguments,
    asking,
    draw,
    gradients,
    names,
    operator,
    subsets,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native")


def _negated(tensor: Tensor) -> Tensor:
    """The negatives of a tensor, as a view of memory that holds its numbers."""
    view = torch.complex(torch.zeros_like(tensor), tensor).conj().imag
    assert view.is_neg()
    return view


class _Watched(Tensor):
    """A subclass that sees, in Python, every operator below autograd."""

    seen: ClassVar[list[Any]] = []
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _Watched.seen.append(op)
        with torch._C._DisableTorchDispatch():
            return op(*args, **(kwargs or {}))


class _WatchCalls(TorchFunctionMode):
    """Sees the operator where it is called, and computes something differentiable of its own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.recorded: list[bool] = []

    def __torch_function__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op)
        with torch.enable_grad():
            self.recorded.append((torch.ones(1, requires_grad=True) * 2).requires_grad)
        return op(*args, **(kwargs or {}))


class _WatchKernels(TorchDispatchMode):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("recording", [False, True])
def test_modes_and_subclasses_see_the_operator(recording: bool) -> None:
    """Also where nothing is recorded and the call takes the short way."""
    problem = draw("points")
    args = problem.from_offsets
    expected = operator("points", "native")(*args)
    with torch.set_grad_enabled(recording):
        with _WatchCalls() as calls:
            assert torch.equal(operator("points", "native")(*args), expected)
        with _WatchKernels() as kernels:
            assert torch.equal(operator("points", "native")(*args), expected)
        for i in (0, 2, 3, 4):
            mixed = list(args)
            mixed[i] = args[i].as_subclass(_Watched)
            _Watched.seen.clear()
            assert torch.equal(operator("points", "native")(*mixed), expected)
            assert _ops.st_deform_attn in _Watched.seen
    assert _ops.st_deform_attn in calls.seen
    assert all(calls.recorded)
    assert _ops.st_deform_attn in kernels.seen


def test_the_profiler_sees_the_operator() -> None:
    problem = draw("points")
    # Some versions of PyTorch warn that they would forget events, without it.
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as profiler:
        operator("points", "native")(*problem.from_offsets)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["stdeform::st_deform_attn"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_are_not_as_they_lie_in_memory(form: str) -> None:
    """The short way to the kernel is not for them: it would read the memory."""
    args = arguments(draw(form), form)
    attend = operator(form, "native")
    with torch.no_grad():
        expected = attend(*args)
        for i, arg in enumerate(args):
            if not isinstance(arg, Tensor):
                continue
            mixed = list(args)
            mixed[i] = _negated(-arg)
            assert torch.equal(attend(*mixed), expected)
            mixed[i] = arg.to_sparse()
            with pytest.raises(NotImplementedError, match="stdeform::st_deform_attn"):
                attend(*mixed)


# The first says that checks read shapes, as checks do; the second that tracing is an old way.
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)
def test_a_trace_holds_the_operator() -> None:
    """Not what the short way does, which would be constants to it."""
    value, shapes, *others = draw("points").from_offsets

    def attend(*tensors: Tensor) -> Tensor:
        return operator("points", "native")(tensors[0], shapes, *tensors[1:])

    with torch.no_grad():
        traced = torch.jit.trace(attend, (value, *others))
        assert "stdeform::st_deform_attn" in str(traced.graph)
        assert torch.equal(traced(2 * value, *others), attend(2 * value, *others))


def test_plain_tensors_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    args = draw("points").from_offsets
    monkeypatch.setattr(_ops, "st_deform_attn", lambda *_: pytest.fail("went through PyTorch"))
    with torch.no_grad():
        operator("points", "native")(*args)
    with torch.inference_mode():
        operator("points", "native")(*(a.clone() if isinstance(a, Tensor) else a for a in args))


@pytest.mark.parametrize("form", FORMS)
def test_recorded_plain_tensors_take_the_short_way(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = draw(form)
    with _WatchKernels():
        expected = gradients(problem, form, "native")
    for name in ("st_deform_attn", "st_deform_attn_backward"):
        monkeypatch.setattr(_ops, name, lambda *_: pytest.fail("went through PyTorch"))
    for got, want in zip(gradients(problem, form, "native"), expected, strict=True):
        assert torch.equal(got, want)


# -- the backward of a call that took the short way --------------------------------------------


def _recorded() -> tuple[Tensor, list[Tensor], Tensor, tuple[Tensor, ...]]:
    """A result, its leaves, a gradient of it and those that it gives."""
    problem = draw("points")
    args = asking(problem.from_offsets, (True,) * 4)
    out = operator("points", "native")(*args)
    assert "StDeformAttn" in out.grad_fn.name()
    return out, tensors(args), problem.grad_out, gradients(problem, "points", "native")


def _assert_all_equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_a_mode_sees_the_backward() -> None:
    """Also one that did not see the forward."""
    out, leaves, grad_out, expected = _recorded()
    with _WatchKernels() as kernels:
        _assert_all_equal(torch.autograd.grad(out, leaves, grad_out), expected)
    assert _ops.st_deform_attn_backward in kernels.seen


def test_the_profiler_sees_the_backward() -> None:
    out, leaves, grad_out, _ = _recorded()
    with torch.profiler.profile(acc_events=True) as profiler:
        torch.autograd.grad(out, leaves, grad_out)
    assert "stdeform::st_deform_attn_backward" in {each.key for each in profiler.key_averages()}


def test_a_gradient_of_a_subclass_is_seen() -> None:
    out, leaves, grad_out, expected = _recorded()
    _Watched.seen.clear()
    got = torch.autograd.grad(out, leaves, grad_out.as_subclass(_Watched))
    _assert_all_equal(got, expected)
    assert _ops.st_deform_attn_backward in _Watched.seen


def test_a_gradient_that_is_not_as_it_lies_in_memory() -> None:
    out, leaves, grad_out, expected = _recorded()
    _assert_all_equal(torch.autograd.grad(out, leaves, _negated(-grad_out)), expected)


def test_what_hooks_make_of_saved_tensors() -> None:
    """Each of the four: a subclass, and what is not as it lies in memory."""
    problem = draw("points")
    args = asking(problem.from_offsets, (True,) * 4)
    expected = gradients(problem, "points", "native")
    for at in range(4):
        for change in (lambda saved: saved.as_subclass(_Watched), lambda saved: _negated(-saved)):
            saved: list[Tensor] = []

            def pack(tensor: Tensor, saved: list[Tensor] = saved) -> int:
                saved.append(tensor.detach())
                return len(saved) - 1

            def unpack(
                i: int, saved: list[Tensor] = saved, change: Any = change, at: int = at
            ) -> Tensor:
                return change(saved[i]) if i == at else saved[i]

            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                out = operator("points", "native")(*args)
            assert len(saved) == 4
            _Watched.seen.clear()
            got = torch.autograd.grad(out, tensors(args), problem.grad_out)
            _assert_all_equal(got, expected)


def test_a_batch_of_gradients() -> None:
    out, leaves, grad_out, expected = _recorded()
    stacked = torch.stack([grad_out, grad_out])
    got = torch.autograd.grad(out, leaves, stacked, is_grads_batched=True)
    _assert_all_equal([grad[1] for grad in got], expected)


def test_a_saved_tensor_that_was_changed_is_refused() -> None:
    out, leaves, grad_out, _ = _recorded()
    with torch.no_grad():
        leaves[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, leaves, grad_out)


def test_nothing_is_recorded_below_autograd() -> None:
    """In the kernel of another operator, where gradients stay enabled."""
    args = asking(draw("points").from_offsets, (True,) * 4)
    with torch._C._AutoDispatchBelowAutograd():
        assert not operator("points", "native")(*args).requires_grad


# -- what is recorded --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_recorded_without_gradients(form: str) -> None:
    args = asking(arguments(draw(form), form), (True,) * len(names(form)))
    with torch.no_grad():
        out = operator(form, "native")(*args)
    assert not out.requires_grad
    assert not out.is_inference()
    assert torch.equal(out, operator(form, "native")(*args))
    assert operator(form, "native")(*args).requires_grad
    with torch.inference_mode():
        assert torch.equal(operator(form, "native")(*args), out)


def test_any_one_input_that_asks_is_recorded() -> None:
    args = arguments(draw("points"), "points")
    for wanted in subsets(4)[1:]:
        assert operator("points", "native")(*asking(args, wanted)).requires_grad
