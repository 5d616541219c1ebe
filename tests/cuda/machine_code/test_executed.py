"""The machine code of the kernels, without a GPU: that it is right, and what it executes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest

from tests.cuda.emulator import build, emulated
from tests.cuda.machine_code import executed, machine_code
from tests.cuda.machine_code.executed import Executed
from tests.support.backends import on_machine
from tests.support.cases import DTYPES, IMAGE, VIDEO, check_against_baseline, draw


def _kernels() -> Sequence[machine_code.Kernel]:
    try:
        build.compiler(), build.cuda_include()
        return machine_code.installed("sm_90")
    except (FileNotFoundError, LookupError) as error:
        pytest.skip(str(error))


# -- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", ["direct", "bins"])
@pytest.mark.parametrize(
    ("form", "axes", "head_dim", "dtype"),
    [
        ("points", VIDEO, 48, "f32"),
        ("points", VIDEO, 48, "bf16-f32"),
        ("boxes", IMAGE, 32, "f16"),
        ("locations", IMAGE, 5, "bf16"),
    ],
)
def test_results(
    form: str, axes: tuple[tuple[int, ...], ...], head_dim: int, dtype: str, backward: str
) -> None:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(
        form, axes, head_dim=head_dim, num_points=9, dtype=value_dtype, side_dtype=side_dtype
    )
    machine = emulated.Machine(
        runner=executed.Runner(_kernels()), tuning={"backward_bins": int(backward == "bins")}
    )
    with on_machine(machine):
        check_against_baseline(problem, form, "emulated")


def test_results_of_fixed_order() -> None:
    # Bins of more samples than a warp has lanes.
    problem = draw(
        "points", [(1, 2, 2)], batch=1, num_heads=1, head_dim=48, num_points=40, num_queries=3
    )
    machine = emulated.Machine(runner=executed.Runner(_kernels()), deterministic=True)
    with on_machine(machine):
        check_against_baseline(problem, "points", "emulated")


# -- instructions --------------------------------------------------------------------------------


@functools.cache
def _executed(dtype: str, backward: bool) -> dict[str, Executed]:
    rows = executed.count(_kernels(), dtype, backward=backward)
    return {row.kernel.split("<")[0]: row for row in rows}


@pytest.mark.parametrize(("dtype", "most"), [("float32", 30), ("bfloat16", 42)])
def test_instructions_of_the_forward(dtype: str, most: float) -> None:
    assert _executed(dtype, backward=False)["forward_kernel"].instructions < most


@pytest.mark.parametrize(("dtype", "most"), [("float32", 57), ("bfloat16", 69)])
def test_instructions_of_the_sums_by_bins(dtype: str, most: float) -> None:
    assert _executed(dtype, backward=True)["bin_backward_kernel"].instructions < most
