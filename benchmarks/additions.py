"""`python -m benchmarks additions`: what the CUDA backward adds to the value's gradient in memory.

Counted from the samples of each workload, nothing is run: numbers added by samples one by one, and
bin by bin (docs/cuda.md).
"""

from __future__ import annotations

import argparse
import dataclasses

import torch

from .traffic import corners_that_exist, low_cells
from .workloads import WORKLOADS, Inputs, Workload, make_inputs

_RUN = 128  # samples that a warp sums in turn: kRunOfSamples of csrc/cuda/bin_plan.h


@dataclasses.dataclass(frozen=True)
class Additions:
    """Numbers that are added to memory.

    Attributes:
        samples: Samples that read something.
        bins: Bins that hold any.
        direct: Added if every sample adds to its corners.
        by_bins: Added if every bin does, and once more where a warp's samples end within one.
    """

    samples: int
    bins: int
    direct: int
    by_bins: int


def count(workload: Workload, inputs: Inputs) -> Additions:
    """Counts the additions of one backward pass."""
    samples = bins = direct = by_bins = 0
    for level, shape in enumerate(workload.spatial_shapes):
        corners = corners_that_exist(workload, inputs, level)
        key = torch.zeros_like(corners)
        stride = 1
        for axis, size in enumerate(reversed(shape)):
            key += (low_cells(inputs, level, axis, size) + 1) * stride
            stride *= size + 1
        batch, _, heads, _ = key.shape
        key += torch.arange(batch * heads).view(batch, 1, heads, 1) * stride
        reads = corners > 0
        found, which = torch.unique(key[reads], return_inverse=True)
        of_bin = torch.zeros_like(found).scatter_(0, which, corners[reads])
        samples += int(reads.sum())
        bins += len(found)
        direct += int(corners.sum())
        by_bins += int(of_bin.sum()) + int(reads.sum()) // _RUN * 2 ** len(shape)
    return Additions(samples, bins, direct * workload.head_dim, by_bins * workload.head_dim)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    names = ["paper-encoder", "paper-encoder-large", "detr-encoder", "paper-decoder"]
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=names)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Prints the table."""
    print("| workload | samples | in a bin | added one by one | bin by bin | times fewer |")
    print("|---|---|---|---|---|---|")
    for name in options.workloads:
        found = count(WORKLOADS[name], make_inputs(WORKLOADS[name], options.seed))
        print(
            f"| {name} | {found.samples:,} | {found.samples / found.bins:.1f} "
            f"| {found.direct / 1e6:.1f} M | {found.by_bins / 1e6:.1f} M "
            f"| {found.direct / found.by_bins:.1f} |"
        )
    return 0
