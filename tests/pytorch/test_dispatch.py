"""Who may look on at a call: modes, subclasses, profiler, autograd; and who takes the short way."""

from __future__ import annotations

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
    names,
    operator,
    subsets,
)

pytestmark = pytest.mark.usefixtures("needs_native")


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
            # A view of memory that holds the negatives.
            mixed[i] = torch.complex(torch.zeros_like(arg), -arg).conj().imag
            assert mixed[i].is_neg()
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
