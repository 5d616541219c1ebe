"""The implementations that are measured.

Our operator, the `grid_sample` baseline that it replaces, dense attention, and other libraries'
operators. Each starts from what a layer predicts (offsets and logits), so that all of them pay for
softmax and sampling locations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import stdeform
from benchmarks.subjects import sdpa, third_party
from benchmarks.subjects.base import Case, Implementation, differentiable, on_problem
from benchmarks.workloads import DTYPES, Workload
from stdeform.functional import Backend
from stdeform.testing import composite_from_offsets

Prepare = Callable[[Workload, int], Case]


def _ours(backend: Backend, deterministic: bool = False) -> Prepare:
    def prepare(workload: Workload, seed: int) -> Case:
        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return stdeform.st_deform_attn_from_offsets(
                value, workload.spatial_shapes, points, offsets, logits, backend=backend
            )

        return on_problem(attend, workload, seed)._replace(deterministic=deterministic)

    return prepare


def _composite(is_compiled: bool) -> Prepare:
    def prepare(workload: Workload, seed: int) -> Case:
        def attend(value: Tensor, *others: Tensor) -> Tensor:
            return composite_from_offsets(value, workload.spatial_shapes, *others)

        function = torch.compile(attend, fullgraph=True) if is_compiled else attend
        return on_problem(function, workload, seed)

    return prepare


def _dense(attend: Callable[..., Tensor]) -> Prepare:
    """Attention of every query over all S cells, heads already split: its best layout."""

    def prepare(workload: Workload, seed: int) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def tokens(count: int) -> Tensor:  # [B, M, count, D]
            shape = (workload.batch, workload.num_heads, count, workload.head_dim)
            return torch.randn(shape, generator=generator).to(DTYPES[workload.dtype])

        queries, cells = workload.num_queries, workload.num_cells
        inputs = differentiable((tokens(queries), tokens(cells), tokens(cells)))
        return Case(attend, inputs, tokens(queries))

    return prepare


IMPLEMENTATIONS = {
    each.name: each
    for each in (
        Implementation("native", _ours("native")),
        # The backward on a CPU always is.
        Implementation("native-deterministic", _ours("native", deterministic=True), on_cpu=False),
        Implementation("reference", _ours("reference")),
        Implementation("composite", _composite(is_compiled=False)),
        Implementation("composite-compiled", _composite(is_compiled=True), is_compiled=True),
        Implementation("dense", _dense(sdpa.attend), is_operator=False),
        Implementation("dense-naive", _dense(sdpa.attend_naively), is_operator=False),
        *(each.implementation for each in third_party.THIRD_PARTY.values()),
    )
}
