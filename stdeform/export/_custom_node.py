"""The operator as one node of an ONNX graph, for runtimes with a plugin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shapes import product
from ._samples import Samples


def attend(name: str, value: Tensor, samples: Samples) -> Tensor:  # [B, S, M, D] -> [B, Q, M * D]
    """The node `name`, "domain::Name"; softmax and locations are standard operations before it.

    Raises:
        RuntimeError: It is not `torch.onnx.export(..., dynamo=True)` that records the call, or this
            PyTorch has no such nodes.
    """
    symbolic: Any = getattr(getattr(torch.onnx, "ops", None), "symbolic", None)
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if symbolic is None or tracing or not torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"form {name!r} needs torch.onnx.export(..., dynamo=True) and PyTorch 2.8 or newer"
        )
    batch, _, num_heads, head_dim = value.shape
    num_queries = samples.positions.shape[1]
    locations, weights = samples.positions, samples.weights
    if samples.references is not None:
        sizes = samples.table([row[::-1] for row in samples.shapes], value.dtype)
        locations = samples.coordinates(torch.ones_like(sizes), 0.0, 1.0 / sizes)
    attributes = {}
    if len(set(samples.points)) == 1:
        levels = (len(samples.points), samples.points[0])
        locations, weights = locations.unflatten(3, levels), weights.unflatten(3, levels)
    else:
        attributes["num_points"] = list(samples.points)
    cells = [product(row) for row in samples.shapes]
    starts = [[sum(cells[:level])] for level in range(len(cells))]
    out: Tensor = symbolic(
        name,
        (
            value,
            samples.table(samples.shapes, torch.int32),
            samples.table(starts, torch.int32)[:, 0],
            locations,
            weights,
        ),
        attributes,
        dtype=value.dtype,
        shape=(batch, num_queries, num_heads, head_dim),
        version=1,
    )
    return out.flatten(2)
