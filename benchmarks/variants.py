"""What is measured: our operator, the composite it replaces, and dense attention.

Every variant does the whole job from what a layer predicts (offsets and logits), so softmax and
sampling locations are paid for by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import stdeform
from stdeform.functional import Backend
from stdeform.testing import composite_from_offsets

from .workloads import DTYPES, Workload, make_inputs


class Prepared(NamedTuple):
    """A variant on one problem.

    Attributes:
        function: Called with `inputs`.
        inputs: Everything differentiable, asking for gradients.
        grad_out: Dense and random, in the shape and dtype of the result.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    grad_out: Tensor

    def forward(self) -> Tensor:
        """The result alone, nothing recorded."""
        with torch.no_grad():
            return self.function(*self.inputs)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The result and the gradients of all inputs."""
        out = self.function(*self.inputs)
        return (out, *torch.autograd.grad(out, self.inputs, self.grad_out))

    def to(self, device: str) -> Prepared:
        """The same problem on another device."""
        inputs = _differentiable(tensor.to(device) for tensor in self.inputs)
        return Prepared(self.function, inputs, self.grad_out.to(device))

    def run(self, mode: str) -> object:
        """`mode` is one of `MODES`."""
        return self.forward() if mode == "forward" else self.forward_backward()


MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Variant:
    """A way to attend.

    Attributes:
        name: What it is called on the command line and in the results.
        is_operator: Whether its answers must be those of our operator. Dense attention, on the
            same tokens, is another function.
        prepare: Builds it for a workload and a seed.
        is_compiled: Whether the first call on a workload compiles for it.
    """

    name: str
    is_operator: bool
    prepare: Callable[[Workload, int], Prepared]
    is_compiled: bool = False


def _ours(backend: Backend) -> Callable[[Workload, int], Prepared]:
    def prepare(workload: Workload, seed: int) -> Prepared:
        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return stdeform.st_deform_attn_from_offsets(
                value, workload.spatial_shapes, points, offsets, logits, backend=backend
            )

        return _on_problem(attend, workload, seed)

    return prepare


def _composite(compiled: bool) -> Callable[[Workload, int], Prepared]:
    def prepare(workload: Workload, seed: int) -> Prepared:
        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return composite_from_offsets(value, workload.spatial_shapes, points, offsets, logits)

        function = torch.compile(attend, fullgraph=True) if compiled else attend
        return _on_problem(function, workload, seed)

    return prepare


def _dense(attend: Callable[..., Tensor]) -> Callable[[Workload, int], Prepared]:
    """Attention of every query over all S cells, heads already split: its best layout."""

    def prepare(workload: Workload, seed: int) -> Prepared:
        inputs, grad_out = _tokens(workload, seed)
        return Prepared(attend, inputs, grad_out)

    return prepare


def _tokens(workload: Workload, seed: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Query, key and value [B, M, Q or S, D], and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[workload.dtype]

    def rows(count: int) -> Tensor:
        shape = (workload.batch, workload.num_heads, count, workload.head_dim)
        return torch.randn(shape, generator=generator).to(dtype)

    queries, cells = workload.num_queries, workload.num_cells
    inputs = rows(queries), rows(cells), rows(cells)
    return _differentiable(inputs), rows(queries)


def _attend_naively(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every score is written to memory, as in code from before fused attention."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    out: Tensor = scores.softmax(-1) @ value
    return out


def _on_problem(function: Callable[..., Tensor], workload: Workload, seed: int) -> Prepared:
    *inputs, grad_out = make_inputs(workload, seed)
    return Prepared(function, _differentiable(inputs), grad_out)


def _differentiable(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().requires_grad_() for tensor in inputs)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("native", True, _ours("native")),
        Variant("reference", True, _ours("reference")),
        Variant("composite", True, _composite(compiled=False)),
        Variant("composite-compiled", True, _composite(compiled=True), is_compiled=True),
        Variant("dense", False, _dense(scaled_dot_product_attention)),
        Variant("dense-naive", False, _dense(_attend_naively)),
    )
}
