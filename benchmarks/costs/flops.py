"""Multiply-adds of attention, counted from its shapes alone."""

from __future__ import annotations

from benchmarks.workloads import Workload


def multiply_adds(workload: Workload, kind: str, with_projections: bool) -> int:
    """Multiply-adds of the forward pass, from the shapes alone.

    Deformable: one per corner, sample and channel. Dense: one per query, cell and channel for the
    scores, and one for the sum. Projections: C x C of every cell to its value and of every query's
    result; for dense attention also of every cell to its key and of every query; for deformable
    those of every query to offsets and logits.
    """
    queries, cells = workload.batch * workload.num_queries, workload.num_cells
    width = workload.width
    squares = (queries + workload.batch * cells) * width * width
    axes = len(workload.spatial_shapes[0])
    samples = len(workload.spatial_shapes) * workload.num_points  # of a query and head
    if kind.startswith("dense"):
        attention, projections = 2 * queries * cells * width, 2 * squares
    else:
        attention = queries * samples * 2**axes * width
        predicted = (axes + 1) * workload.num_heads * samples
        projections = squares + queries * width * predicted
    return attention + projections * with_projections
