"""`python -m benchmarks additions`: what the CUDA backward adds to the value's gradient in memory.

Counted from the samples of each workload, nothing is run: numbers added by samples one by one, and
bin by bin; and with `--deterministic`, what sums in a fixed order take beyond that (docs/cuda.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import torch
from torch import Tensor

from benchmarks.costs.traffic import corners_that_exist, low_cells
from benchmarks.workloads import WORKLOADS, Inputs, Workload, make_inputs

# The same in csrc/cuda, which the tests compare.
_RUN = 128  # samples that a warp sums in turn
_BATCH = 32  # samples that a warp describes at a time, in float32
_SAMPLES_PER_BIN = 4  # from which on bins are taken


@dataclasses.dataclass(frozen=True)
class Bins:
    """The bins of all levels, heads and batch rows.

    Attributes:
        number: How many there are, with those that hold nothing.
        samples: [bins that hold any]: how many.
        corners: [bins that hold any]: how many of a bin's corners exist.
        axes: N.
    """

    number: int
    samples: Tensor
    corners: Tensor
    axes: int


@dataclasses.dataclass(frozen=True)
class Additions:
    """Numbers that are added to memory.

    Attributes:
        direct: Added if every sample adds to its corners.
        by_bins: Added if every bin does, and once more where a warp's samples end within one.
    """

    direct: int
    by_bins: int


@dataclasses.dataclass(frozen=True)
class FixedOrder:
    """What the deterministic backward does of which the faster one does less or nothing.

    Attributes:
        sorting: Steps of warps that put the samples of each bin in order, a comparison each.
        described: Turns of a warp that describes up to 32 samples at a time.
        described_in_runs: The same where a warp goes on from bin to bin.
        moved: Numbers of the value's gradient that are read, and written again.
        longest: Samples of the largest bin, which one warp sums alone.
    """

    sorting: int
    described: int
    described_in_runs: int
    moved: int
    longest: int


def sort_into_bins(workload: Workload, inputs: Inputs) -> Bins:
    """Counts the samples of every bin."""
    number, samples, corners = 0, [], []
    for level, shape in enumerate(workload.spatial_shapes):
        of_sample = corners_that_exist(workload, inputs, level)
        key = torch.zeros_like(of_sample)
        stride = 1
        for axis, size in enumerate(reversed(shape)):
            key += (low_cells(inputs, level, axis, size) + 1) * stride
            stride *= size + 1
        batch, _, heads, _ = key.shape
        number += batch * heads * stride
        of_head = torch.arange(batch * heads, device=key.device)
        key += of_head.view(batch, 1, heads, 1) * stride
        reads = of_sample > 0
        found, which, count = torch.unique(key[reads], return_inverse=True, return_counts=True)
        samples.append(count)
        corners.append(torch.zeros_like(found).scatter_(0, which, of_sample[reads]))
    return Bins(number, torch.cat(samples), torch.cat(corners), len(workload.spatial_shapes[0]))


def count(bins: Bins, head_dim: int) -> Additions:
    """Counts the additions of one backward pass; `head_dim` is D."""
    splits = int(bins.samples.sum()) // _RUN << bins.axes
    return Additions(
        direct=int((bins.samples * bins.corners).sum()) * head_dim,
        by_bins=(int(bins.corners.sum()) + splits) * head_dim,
    )


def count_fixed_order(bins: Bins, head_dim: int) -> FixedOrder:
    """Counts what a fixed order takes; `head_dim` is D."""
    sizes, of_size = torch.unique(bins.samples, return_counts=True)
    pairs = list(zip(sizes.tolist(), of_size.tolist(), strict=True))
    samples = int(bins.samples.sum())
    return FixedOrder(
        sorting=sum(_sorting_steps(size) * many for size, many in pairs),
        described=sum(math.ceil(size / _BATCH) * many for size, many in pairs),
        described_in_runs=math.ceil(samples / _BATCH),
        moved=int(bins.corners.sum()) * head_dim,
        longest=int(sizes.max()),
    )


def takes_bins(workload: Workload) -> bool:
    """Whether the backward works bin by bin where nobody asks for a fixed order."""
    samples = len(workload.spatial_shapes) * workload.num_points * workload.num_queries
    bins = sum(math.prod(size + 1 for size in shape) for shape in workload.spatial_shapes)
    return samples >= _SAMPLES_PER_BIN * bins


def _sorting_steps(samples: int) -> int:
    """A comparison by 32 lanes each: all with one, or a bitonic network of 2^n >= samples."""
    if samples <= _BATCH:
        return samples
    stages = (samples - 1).bit_length()
    return math.ceil(samples / _BATCH) * (stages * (stages + 1) // 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    names = ["paper-encoder", "paper-encoder-large", "detr-encoder", "paper-decoder"]
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=names)
    parser.add_argument("--deterministic", action="store_true", help="what a fixed order takes")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Prints a table."""
    columns = ["workload", "samples", "in a bin", "added one by one", "bin by bin", "times fewer"]
    if options.deterministic:
        columns = ["workload", "bins", "empty", "largest", "sorting steps per sample"]
        columns += ["descriptions", "more than in runs", "numbers read and written"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    describe = _fixed_order if options.deterministic else _additions
    for name in options.workloads:
        workload = WORKLOADS[name]
        bins = sort_into_bins(workload, make_inputs(workload, options.seed))
        print(f"| {name} | {' | '.join(describe(bins, workload.head_dim))} |", flush=True)
    return 0


def _additions(bins: Bins, head_dim: int) -> list[str]:
    found = count(bins, head_dim)
    samples = int(bins.samples.sum())
    return [
        *(f"{samples:,}", f"{samples / len(bins.samples):.1f}"),
        *(f"{found.direct / 1e6:.1f} M", f"{found.by_bins / 1e6:.1f} M"),
        f"{found.direct / found.by_bins:.1f}",
    ]


def _fixed_order(bins: Bins, head_dim: int) -> list[str]:
    found = count_fixed_order(bins, head_dim)
    return [
        *(f"{bins.number:,}", f"{1 - len(bins.samples) / bins.number:.0%}", f"{found.longest}"),
        f"{found.sorting / int(bins.samples.sum()):.2f}",
        f"{found.described:,}",
        f"{found.described / found.described_in_runs:.2f}x",
        f"{found.moved / 1e6:.1f} M",
    ]
