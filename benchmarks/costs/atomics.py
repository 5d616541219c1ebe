"""Numbers that the CUDA backward adds to the value's gradient in memory (docs/internals).

Counted from the samples of a workload, nothing is run: added by samples one by one, and bin by bin.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from benchmarks.costs.traffic import corners_that_exist, low_cells
from benchmarks.workloads import Inputs, Workload

# The same in csrc/cuda, which the tests compare.
_RUN = 128  # samples that a warp sums in turn
_SAMPLES_PER_BIN = 4  # from which on bins are taken


@dataclasses.dataclass(frozen=True)
class Bins:
    """The bins of all levels, heads and batch rows that hold samples.

    Attributes:
        samples: [bins]: how many.
        corners: [bins]: how many of a bin's corners exist.
        axes: N.
    """

    samples: Tensor
    corners: Tensor
    axes: int


@dataclasses.dataclass(frozen=True)
class AtomicAdds:
    """Numbers that are added to memory.

    Attributes:
        direct: Added if every sample adds to its corners.
        by_bins: Added if every bin does, and once more where a warp's samples end within one.
    """

    direct: int
    by_bins: int


def sort_into_bins(workload: Workload, inputs: Inputs) -> Bins:
    """Counts the samples of every bin."""
    samples, corners = [], []
    for level, shape in enumerate(workload.spatial_shapes):
        of_sample = corners_that_exist(workload, inputs, level)
        batch, _, heads, _ = of_sample.shape
        key = torch.arange(batch * heads, device=of_sample.device).view(batch, 1, heads, 1)
        for axis in reversed(range(len(shape))):
            size = shape[-1 - axis]
            key = key * (size + 1) + low_cells(inputs, level, axis, size) + 1
        reads = of_sample > 0
        found, which, count = torch.unique(key[reads], return_inverse=True, return_counts=True)
        samples.append(count)
        corners.append(torch.zeros_like(found).scatter_(0, which, of_sample[reads]))
    return Bins(torch.cat(samples), torch.cat(corners), len(workload.spatial_shapes[0]))


def count(bins: Bins, head_dim: int) -> AtomicAdds:
    """Counts the additions of one backward pass; `head_dim` is D."""
    splits = int(bins.samples.sum()) // _RUN << bins.axes
    return AtomicAdds(
        direct=int((bins.samples * bins.corners).sum()) * head_dim,
        by_bins=(int(bins.corners.sum()) + splits) * head_dim,
    )


def takes_bins(workload: Workload) -> bool:
    """Whether the backward works bin by bin without deterministic algorithms."""
    samples = len(workload.spatial_shapes) * workload.num_points * workload.num_queries
    bins = sum(math.prod(size + 1 for size in shape) for shape in workload.spatial_shapes)
    return samples >= _SAMPLES_PER_BIN * bins
