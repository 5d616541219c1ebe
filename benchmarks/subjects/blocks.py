"""Attention with its projections, of an encoder and a decoder, and whole encoder layers.

Deformable and dense ones differ in the attention and its projections alone: normalisation,
feed-forward network, input and gradient are the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import stdeform
from benchmarks.subjects.base import Case, WrongAnswerError, differentiable
from benchmarks.subjects.sdpa import attend_naively
from benchmarks.workloads import Workload
from stdeform.testing import assert_close

_FEEDFORWARD = 2048  # of VisTR and Deformable VisTR


class DeformableBlock(nn.Module):
    """`STDeformAttn` to the volume, of every cell around itself, or of queries around any place."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._shapes = workload.spatial_shapes
        levels = len(self._shapes)
        self.attention = stdeform.STDeformAttn(
            workload.width, levels, workload.num_heads, workload.num_points, backend="native"
        )
        # Offsets that differ from cell to cell, around the layer's initial pattern.
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.01)
        if workload.num_object_queries is None:
            points = stdeform.reference_grid(self._shapes)
        else:
            points = torch.rand(1, workload.num_object_queries, 1, len(self._shapes[0]))
            points = points.repeat(1, 1, levels, 1)
        self.points: Tensor
        self.register_buffer("points", points)

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """[B, S, C] to [B, S, C]; with queries [B, Q, C] to [B, Q, C]."""
        out: Tensor = self.attention(
            x if queries is None else queries, self.points, x, self._shapes
        )
        return out


class DenseBlock(nn.Module):
    """Attention to every cell, with the four projections of multi-head attention."""

    def __init__(self, workload: Workload, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        width, is_encoder = workload.width, workload.num_object_queries is None
        self._heads, self._attend = workload.num_heads, attend
        if not is_encoder:
            self.query = nn.Linear(width, width)
        # Those of one input are one product, as in `nn.MultiheadAttention`.
        self.inputs = nn.Linear(width, (3 if is_encoder else 2) * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """[B, S, C] to [B, S, C]; with queries [B, Q, C] to [B, Q, C]."""
        if queries is None:
            parts = self.inputs(x).chunk(3, -1)
        else:
            parts = (self.query(queries), *self.inputs(x).chunk(2, -1))
        attended = self._attend(
            *(part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        )
        out: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """An encoder layer: attention and feed-forward network, each added and normalised."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, _FEEDFORWARD), nn.ReLU(), nn.Linear(_FEEDFORWARD, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] to [B, S, C]."""
        x = self.first_norm(x + self.attention(x))
        out: Tensor = self.second_norm(x + self.feedforward(x))
        return out


def _prepare(kind: str, is_layer: bool, workload: Workload, seed: int) -> Case:
    torch.manual_seed(seed)
    inputs = _inputs(workload)
    grad_out = torch.randn(workload.batch, workload.num_queries, workload.width)
    block = _ATTENTION[kind](workload)
    module = Layer(block, workload.width) if is_layer else block

    def run(*tensors: Tensor) -> Tensor:
        out: Tensor = module(*tensors[: len(inputs)])  # after them come the module's weights
        return out

    return Case(run, (*differentiable(inputs), *module.parameters()), grad_out)


def _inputs(workload: Workload) -> tuple[Tensor, ...]:
    """The cells [B, S, C], and the queries [B, Q, C] of a decoder."""
    counts = filter(None, (workload.num_cells, workload.num_object_queries))
    return tuple(torch.randn(workload.batch, count, workload.width) for count in counts)


def check_block(workload: Workload, seed: int) -> None:
    """Compares the deformable block with its reference, on up to four frames of the workload.

    Raises:
        WrongAnswerError: They differ.
    """
    shapes = tuple((min(4, shape[0]), *shape[1:]) for shape in workload.spatial_shapes)
    torch.manual_seed(seed)
    short = dataclasses.replace(workload, spatial_shapes=shapes)
    block, inputs = DeformableBlock(short), _inputs(short)
    with torch.no_grad():
        found = block(*inputs)
        block.attention.backend = "reference"
        expected = block.double()(*(tensor.double() for tensor in inputs))
    try:
        assert_close(found, expected, "forward", "the attention block")
    except AssertionError as error:
        raise WrongAnswerError(str(error)) from error


_ATTENTION: dict[str, Callable[[Workload], nn.Module]] = {
    "deformable": DeformableBlock,
    "dense": functools.partial(DenseBlock, attend=scaled_dot_product_attention),
    "dense, naive": functools.partial(DenseBlock, attend=attend_naively),
}


def _by_kind(is_layer: bool, *kinds: str) -> dict[str, Callable[[Workload, int], Case]]:
    return {kind: functools.partial(_prepare, kind, is_layer) for kind in kinds}


# By what is compared and then by kind; each makes a case of a workload and a seed.
BLOCKS = {
    "attention block": _by_kind(False, *_ATTENTION),
    "decoder block": _by_kind(False, *_ATTENTION),
    "encoder layer": _by_kind(True, "deformable", "dense"),
}
