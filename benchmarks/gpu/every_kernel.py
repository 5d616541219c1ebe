"""Every kernel once, on small problems: `python -m benchmarks.gpu.every_kernel` for a sanitizer.

A problem is a dtype, a number of axes, a number of channels and a way backward. Together they
reach every instantiation of the CUDA kernels (tests/benchmarks/gpu/test_every_kernel.py, in the
emulator). Results and gradients are compared with the reference in float64. It is short enough for
every tool of compute-sanitizer, and without one it is the first test on a GPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import stdeform
from benchmarks.gpu.stage import Stage
from benchmarks.subjects import base
from benchmarks.workloads import DTYPES
from stdeform import _native, reference
from stdeform.testing import Problem, excess, make_problem

_SHAPES = {2: ((6, 5), (3, 4)), 3: ((4, 6, 5), (2, 3, 3))}
_QUERIES = 37  # more than a warp has rows, and no multiple of them
# Channels with a layout of their own, and 5 for that of any number.
_CHANNELS = (48, 32, 5, 64, 16, 96, 128)
_BIN_CHANNELS = (48, 32, 5, 64)


class Way(NamedTuple):
    """A way backward, and with it a way forward."""

    form: str  # "attention" takes locations and weights, "from_offsets" a reference
    tuning: Mapping[str, int]  # forced fields of `Tuning` in csrc/cuda/params.h
    deterministic: bool  # whether sums are in a fixed order
    channels: tuple[int, ...]  # with kernels of their own


_BY_BINS = {"backward_bins": 1, "forward_splits": 2}
WAYS = {
    "one by one": Way("from_offsets", {"backward_bins": 0}, False, _CHANNELS),
    "bin by bin": Way("from_offsets", _BY_BINS, False, _BIN_CHANNELS),
    "in order": Way("attention", {"backward_bins": 1}, True, _BIN_CHANNELS),
}


class Case(NamedTuple):
    """One problem, and what is forced on the kernels meanwhile."""

    dtype: str
    axes: int
    channels: int
    way: str

    @property
    def label(self) -> str:
        """As it is reported."""
        return f"{self.dtype}, N = {self.axes}, D = {self.channels}, {self.way}"

    def problem(self) -> Problem:
        """On the CPU, its samples off the kinks."""
        return make_problem(
            _SHAPES[self.axes],
            num_queries=_QUERIES,
            head_dim=self.channels,
            dtype=DTYPES[self.dtype],
            kink_margin=0.1,
        )


def cases() -> list[Case]:
    """Every one, the most used first."""
    return [
        Case(dtype, axes, channels, way)
        for dtype in DTYPES
        for axes in (3, 2)
        for way in WAYS
        # In float64 all numbers of channels are served by the same kernels.
        for channels in ((5,) if dtype == "float64" else WAYS[way].channels)
    ]


def error_of(case: Case, device: str) -> float:
    """The largest error of a case as a multiple of the tolerance."""
    way = WAYS[case.way]
    name = "st_deform_attn" if way.form == "attention" else "st_deform_attn_from_offsets"
    problem = case.problem()

    def results(
        operator: Callable[..., Tensor], problem: Problem, deterministic: bool = False
    ) -> tuple[Tensor, ...]:
        value, shapes, *others = getattr(problem, way.form)
        leaves = base.differentiable((value, *others))
        base.poison((problem.grad_out, *leaves))
        return base.Case(
            lambda value, *others: operator(value, shapes, *others),
            leaves,
            problem.grad_out,
            deterministic,
        ).forward_backward()

    expected = results(getattr(reference, name), problem.to(torch.float64))
    _native.options.cuda_tuning = way.tuning
    try:
        ours = functools.partial(getattr(stdeform, name), backend="native")
        there = problem.map(lambda tensor: tensor.to(device))
        found = results(ours, there, way.deterministic)
        return max(
            excess(one.cpu(), other, "gradient" if number else "forward")
            for number, (one, other) in enumerate(zip(found, expected, strict=True))
        )
    finally:
        _native.options.cuda_tuning = {}


def run(stage: Stage, chosen: Sequence[Case]) -> bool:
    """Makes a row of each case, unless an earlier process tried it; whether all were right."""
    tried = stage.read()["tried"]
    for case in chosen:
        if case.label in tried:
            continue
        print(case.label, flush=True)  # before it runs: what a sanitizer says next is about it
        with stage.trying(case.label):
            error = error_of(case, stage.device)
            stage.write(row={"problem": case.label, "error": error})
            if error <= 1:
                stage.write(done=case.label)
            else:
                stage.note(f"{case.label}: {error:.3g} times as far off as the tolerance allows")
    return len(stage.read()["done"]) == len(chosen)


if __name__ == "__main__":
    sys.exit(not run(Stage.of_environment(), cases()))
