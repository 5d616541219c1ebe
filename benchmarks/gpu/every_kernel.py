"""Every kernel once, on small problems: `python -m benchmarks.gpu.every_kernel cuda`.

A problem is a dtype, a number of axes, a number of channels and a way backward. Together they
reach every instantiation of the CUDA kernels (tests/benchmarks/gpu/test_every_kernel.py, in the
emulator). Results and gradients are compared with the reference in float64. It is short enough for
every tool of compute-sanitizer, and without one it is the first test on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import stdeform
from benchmarks.gpu.record import Record, of_environment
from benchmarks.gpu.stage import first_line
from benchmarks.subjects.base import poison
from benchmarks.workloads import DTYPES
from stdeform import _native, reference
from stdeform.testing import Problem, excess, make_problem

_SHAPES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((6, 5), (3, 4)),
    3: ((4, 6, 5), (2, 3, 3)),
}
_QUERIES = 37  # more than a warp has rows, and no multiple of them
# Channels with a layout of their own, and 5 for that of any number.
_CHANNELS = (48, 32, 5, 64, 16, 96, 128)
_BIN_CHANNELS = (48, 32, 5, 64)


@dataclass(frozen=True)
class Way:
    """A way backward, and with it a way forward."""

    form: str  # "attention" takes locations and weights, "from_offsets" a reference
    tuning: Mapping[str, int]  # forced fields of `Tuning` in csrc/cuda/params.h
    deterministic: bool  # whether sums are in a fixed order
    channels: tuple[int, ...]  # with kernels of their own


WAYS = {
    "one by one": Way("from_offsets", {"backward_bins": 0}, False, _CHANNELS),
    "bin by bin": Way(
        "from_offsets", {"backward_bins": 1, "forward_splits": 2}, False, _BIN_CHANNELS
    ),
    "in order": Way("attention", {"backward_bins": 1}, True, _BIN_CHANNELS),
}


@dataclass(frozen=True)
class Case:
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


def results(
    operator: Callable[..., Tensor], arguments: Sequence[object], grad: Tensor
) -> list[Tensor]:
    """The result of an operator and the gradients of all tensors."""
    leaves = [
        each.detach().requires_grad_() if isinstance(each, Tensor) else each for each in arguments
    ]
    tensors = [each for each in leaves if isinstance(each, Tensor)]
    poison((grad, *tensors))
    out = operator(*leaves)
    return [out, *torch.autograd.grad(out, tensors, grad)]


def error_of(case: Case, device: str) -> float:
    """The largest error of a case as a multiple of the tolerance."""
    way = WAYS[case.way]
    problem = case.problem()
    name = "st_deform_attn" if way.form == "attention" else "st_deform_attn_from_offsets"
    exact = problem.to(torch.float64)
    expected = results(getattr(reference, name), getattr(exact, way.form), exact.grad_out)
    moved = problem.map(lambda tensor: tensor.to(device))

    def ours(*arguments: object) -> Tensor:
        out: Tensor = getattr(stdeform, name)(*arguments, backend="native")
        return out

    torch.use_deterministic_algorithms(way.deterministic)
    _native.options.cuda_tuning = way.tuning
    try:
        found = results(ours, getattr(moved, way.form), moved.grad_out)
        return max(
            excess(one.cpu(), other, "gradient" if number else "forward")
            for number, (one, other) in enumerate(zip(found, expected, strict=True))
        )
    finally:
        torch.use_deterministic_algorithms(False)
        _native.options.cuda_tuning = {}


def run(
    device: str,
    record: Record,
    chosen: Sequence[Case],
    check_device: Callable[[], None] = lambda: None,
) -> bool:
    """Runs cases and makes a row of each; one that was tried before is not tried again.

    Args:
        device: "cuda" or "cpu".
        record: Takes the rows.
        chosen: Of `cases`.
        check_device: Called after an error, to raise if nothing else can run.

    Returns:
        Whether all were right.
    """
    tried = record.read()["tried"]
    for case in chosen:
        if case.label in tried:
            continue
        record.write(trying=case.label)
        print(case.label, flush=True)  # before it runs: what a sanitizer says next is about it
        try:
            error = error_of(case, device)
        except RuntimeError as reason:
            record.note(f"{case.label}: {first_line(reason)}")
            check_device()
            continue
        record.write(row={"problem": case.label, "error": error})
        if not error <= 1:
            record.note(f"{case.label}: {error:.3g} times as far off as the tolerance allows")
    rows = record.read()["rows"]
    return len(rows) == len(chosen) and all(row["error"] <= 1 for row in rows)


def _main() -> int:
    return int(not run(sys.argv[1], of_environment(), cases()))


if __name__ == "__main__":
    sys.exit(_main())
