"""What is timed: a function with the tensors of one problem, and the implementation it is from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure.compiled import compiler
from benchmarks.workloads import DTYPES, Workload, make_inputs


class WrongAnswerError(RuntimeError):
    """A result or gradient differs from the oracle's by more than rounding."""


class BackwardOnceError(RuntimeError):
    """A backward uses up its graph: a compiled one may write into what was kept for it."""


def poison(like: Iterable[Tensor]) -> None:
    """Leaves NaN where results of these shapes will likely be, so that unwritten memory is seen.

    Without it the right results of the call before may still be there.
    """
    filled = [torch.full_like(tensor, torch.nan) for tensor in like]
    filled.clear()


class Case(NamedTuple):
    """An implementation on one problem.

    Attributes:
        function: Called with `inputs`.
        inputs: Everything differentiable, with `requires_grad`.
        grad_out: Dense and random, in the shape and dtype of the result.
        deterministic: Whether its backward runs under deterministic algorithms.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    grad_out: Tensor
    deterministic: bool = False

    def forward(self) -> Tensor:
        """The result alone, nothing recorded."""
        with torch.no_grad():
            return self.function(*self.inputs)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The result and the gradients of all inputs."""
        out = self.function(*self.inputs)
        return (out, *self._gradients(out))

    def to(self, device: str) -> Case:
        """The same problem on another device."""
        inputs = differentiable(tensor.to(device) for tensor in self.inputs)
        return self._replace(inputs=inputs, grad_out=self.grad_out.to(device))

    def call(self, mode: str) -> Callable[[], object]:
        """What is timed.

        Args:
            mode: Of `ALL_MODES`. The backward alone runs again and again on the graph of one
                forward, which is run here.

        Raises:
            BackwardOnceError: This backward runs on a graph only once.
        """
        if mode == "forward":
            return self.forward
        if mode == "forward+backward":
            return self.forward_backward
        out = self.function(*self.inputs)

        def backward() -> tuple[Tensor, ...]:
            return self._gradients(out, retain_graph=True)

        try:
            backward()
        except RuntimeError as error:
            if "retain_graph" not in str(error):
                raise
            raise BackwardOnceError(str(error).partition("\n")[0]) from error
        return backward

    def _gradients(self, out: Tensor, retain_graph: bool = False) -> tuple[Tensor, ...]:
        with deterministic() if self.deterministic else contextlib.nullcontext():
            return torch.autograd.grad(out, self.inputs, self.grad_out, retain_graph=retain_graph)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms, and what PyTorch does besides, such as filling new memory."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Implementation:
    """Something that attends.

    Attributes:
        name: On the command line and in the results.
        prepare: Makes a case of a workload and a seed.
        is_operator: Whether its answers must be those of our operator. Dense attention, on the
            same tokens, is another function.
        is_compiled: Whether the first call on a workload compiles for it.
        axes: Numbers of axes that it supports.
        dtypes: Dtypes that it supports, of `DTYPES`.
        gradients_in: The dtype that gradients of offsets and logits pass through where it is
            narrower than theirs: then its tolerance applies.
        on_cpu: Whether it runs there.
    """

    name: str
    prepare: Callable[[Workload, int], Case]
    is_operator: bool = True
    is_compiled: bool = False
    axes: tuple[int, ...] = (2, 3)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    gradients_in: torch.dtype | None = None
    on_cpu: bool = True

    def refusal(self, workload: Workload, device: str = "cpu") -> str:
        """Why it does not support a workload; "" if it does."""
        if device == "cpu" and not self.on_cpu:
            return "it needs a GPU"
        axes = len(workload.spatial_shapes[0])
        if axes not in self.axes:
            return f"it has no operator for {axes} axes"
        if workload.dtype not in self.dtypes:
            return f"it has no operator for {workload.dtype}"
        if self.is_compiled and compiler() is None:
            return "it needs a C++ compiler"
        return ""


def on_problem(function: Callable[..., Tensor], workload: Workload, seed: int) -> Case:
    """A function with the arguments of `st_deform_attn_from_offsets`, on a workload's tensors."""
    *inputs, grad_out = make_inputs(workload, seed)
    return Case(function, differentiable(inputs), grad_out)


def differentiable(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Leaves that require gradients."""
    return tuple(tensor.detach().requires_grad_() for tensor in inputs)
