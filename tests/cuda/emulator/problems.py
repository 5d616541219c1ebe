"""Small problems that together reach every CUDA kernel, and every line of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.gpu import every_kernel
from stdeform.testing import Problem
from tests.cuda.emulator.emulated import Machine
from tests.support.backends import on_machine
from tests.support.cases import FORMS, IMAGE, VIDEO, check_against_baseline, draw, gradients

# Ways backward. The last but one: warps that end within a bin, and a chunk for every head.
WAYS = {
    "direct": Machine(tuning={"backward_bins": 0}),
    "bins": Machine(tuning={"backward_bins": 1}),
    "short": Machine(tuning={"backward_bins": 1, "samples_per_warp": 5, "workspace_bytes": 0}),
    "fixed": Machine(deterministic=True),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One problem, and what runs it.

    Attributes:
        label: As tests name it.
        form: One of `FORMS`.
        problem: Draws it.
        machine: What is forced on the kernels.
        refused: What the operator says if it must refuse; "" if it must not.
    """

    label: str
    form: str
    problem: Callable[[], Problem]
    machine: Machine
    refused: str = ""

    def check(self, **how: Any) -> None:
        """Runs it forward and backward, and compares the results with the baseline.

        Args:
            how: The fields of `Machine` that are the test's.
        """
        with on_machine(dataclasses.replace(self.machine, **how)):
            if not self.refused:
                check_against_baseline(self.problem(), self.form, "emulated")
                return
            with pytest.raises(RuntimeError, match=self.refused):
                gradients(self.problem(), self.form, "emulated")


def trials() -> Iterator[Trial]:
    """All of them; those of a kernel each are what a GPU is tested with first."""
    for case in every_kernel.cases():
        way = every_kernel.WAYS[case.way]
        form = "locations" if way.form == "attention" else "points"
        machine = Machine(tuning=way.tuning, deterministic=way.deterministic)
        yield Trial(case.label, form, case.problem, machine)
    for (name, way), head_dim in itertools.product(WAYS.items(), (5, 48, 136)):
        axes = IMAGE if head_dim == 5 else VIDEO
        boxes = functools.partial(draw, "boxes", axes, head_dim=head_dim)
        yield Trial(f"boxes, D = {head_dim}, {name}", "boxes", boxes, way)
        one_bin = functools.partial(in_one_bin, 25, head_dim=head_dim)
        yield Trial(f"one bin, D = {head_dim}, {name}", "points", one_bin, way)
    for (name, way), form in itertools.product(WAYS.items(), FORMS):
        # More than the lanes of a query-head, then fewer: steps do not cross levels.
        ragged = functools.partial(draw, form, [*VIDEO, (1, 2, 2)], num_points=(33, 1, 6))
        yield Trial(f"ragged {form}, {name}", form, ragged, way)
    for splits, head_dim in itertools.product((1, 4), (5, 48)):
        grid = functools.partial(draw, "points", IMAGE, num_queries=39, head_dim=head_dim)
        tuning = {"forward_bricks": 2, "forward_splits": splits, "backward_splits": splits}
        machine = Machine(tuning=tuning | {"backward_bins": 0}, device=1)
        yield Trial(f"bricks, D = {head_dim}, {splits} splits", "points", grid, machine)
    yield from _refusals()


def in_one_bin(num_queries: int, **settings: int) -> Problem:
    """A problem with all samples between the same cells of their level."""
    problem = draw("points", [(2, 3, 3)], num_queries=num_queries, **settings)
    return dataclasses.replace(
        problem,
        reference_points=torch.full_like(problem.reference_points, 0.5),
        sampling_offsets=torch.rand_like(problem.sampling_offsets) * 0.4 + 0.05,
    )


def _refusals() -> Iterator[Trial]:
    small = functools.partial(draw, "points")
    yield Trial("no device", "points", small, Machine(device=7), r"invalid device .*\(B = 2, Q = 7")
    splits, brick = {"forward_splits": 17}, {"brick": 1}
    refused = "at most 16 warps can share a tile, got 17"
    yield Trial("splits", "points", small, Machine(device=1, tuning=splits), refused)
    yield Trial("tuning", "points", small, Machine(tuning=brick), 'no tuning "brick"')
    levels = functools.partial(draw, "points", [(1, 1)] * 65)
    yield Trial("levels", "points", levels, Machine(), "at most 64 levels, got L = 65")
    yield Trial("points", "points", _many_points, Machine(), "sizes up to .*, got 2147483648")
    yield Trial("bins", "points", _many_bins, WAYS["fixed"], "got 1 and 2147483652")


def _one_sample() -> Problem:
    sizes = {"batch": 1, "num_queries": 1, "num_heads": 1, "head_dim": 1, "num_points": 1}
    return draw("points", [(1, 1, 1)], **sizes)


def _many_points() -> Problem:
    one = _one_sample()
    return dataclasses.replace(
        one,
        sampling_offsets=one.sampling_offsets.expand(-1, -1, -1, -1, 2**31, -1),
        attention_logits=one.attention_logits.expand(-1, -1, -1, -1, 2**31),
    )


def _many_bins() -> Problem:
    """A level has a bin more than cells along each axis."""
    one = _one_sample()
    value = one.value.expand(-1, 2**29, -1, -1)
    return dataclasses.replace(one, spatial_shapes=((1, 1, 2**29),), value=value)
