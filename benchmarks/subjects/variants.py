"""What is measured: our operator, the composite it replaces, dense attention, other operators.

Every variant does the whole job from what a layer predicts (offsets and logits), so softmax and
sampling locations are paid for by all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import stdeform
from benchmarks.subjects import peers
from benchmarks.subjects.attention_backend import attend as attend_densely
from benchmarks.subjects.prepared import Prepared, Variant, differentiable, on_problem
from benchmarks.workloads import DTYPES, Workload
from stdeform.functional import Backend
from stdeform.testing import composite_from_offsets


def _ours(backend: Backend) -> Callable[[Workload, int], Prepared]:
    def prepare(workload: Workload, seed: int) -> Prepared:
        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return stdeform.st_deform_attn_from_offsets(
                value, workload.spatial_shapes, points, offsets, logits, backend=backend
            )

        return on_problem(attend, workload, seed)

    return prepare


def _composite(compiled: bool) -> Callable[[Workload, int], Prepared]:
    def prepare(workload: Workload, seed: int) -> Prepared:
        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return composite_from_offsets(value, workload.spatial_shapes, points, offsets, logits)

        function = torch.compile(attend, fullgraph=True) if compiled else attend
        return on_problem(function, workload, seed)

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
    return differentiable(inputs), rows(queries)


def attend_naively(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every score is written to memory, as in code from before fused attention."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    out: Tensor = scores.softmax(-1) @ value
    return out


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("native", True, _ours("native")),
        Variant("reference", True, _ours("reference")),
        Variant("composite", True, _composite(compiled=False)),
        Variant("composite-compiled", True, _composite(compiled=True), is_compiled=True),
        Variant("dense", False, _dense(attend_densely)),
        Variant("dense-naive", False, _dense(attend_naively)),
        *(peer.variant for peer in peers.PEERS.values()),
    )
}
