"""The portable CPU kernels on an emulated Arm processor: results, gradients and machine code.

One file, as all of it waits for one compilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import subprocess
from pathlib import Path

import pytest
import torch

from stdeform.testing import Problem
from tests.arm import emulated_arm
from tests.arm.machine_code import Loop, disassembly, inner_loops, merged_functions
from tests.support.cases import (
    DTYPES,
    FORMS,
    IMAGE,
    VIDEO,
    assert_results_close,
    draw,
    forward,
    names,
    results,
)

# -- results -----------------------------------------------------------------------------------


def check(problem: Problem, form: str, arm: str) -> None:
    """Compares result and gradients with the reference in float64."""
    expected = results(problem.to(torch.float64), form, "reference")
    assert_results_close(results(problem, form, arm), expected, form)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(arm: str, form: str, dtype: str) -> None:
    value_dtype, side_dtype = DTYPES[dtype]
    dtypes = {"dtype": value_dtype, "side_dtype": side_dtype}
    for shapes in (VIDEO, IMAGE):
        check(draw(form, shapes, num_points=(2, 5), head_dim=21, **dtypes), form, arm)
    # Fewer than two corners per cell: the value is read where it is, not packed.
    for shapes in ([(4, 12, 10), (1, 1, 2)], [(24, 20), (1, 1)]):
        check(draw(form, shapes, num_queries=9, head_dim=32, **dtypes), form, arm)


@pytest.mark.parametrize("head_dim", [1, 8, 12, 24, 130])
def test_head_dims(arm: str, head_dim: int) -> None:
    """Blocks of every number of vectors."""
    for dtype in ("f64", "f32", "f16", "bf16"):
        check(draw("points", head_dim=head_dim, dtype=DTYPES[dtype][0]), "points", arm)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_16_bit_number_is_converted_as_by_pytorch(arm: str, dtype: str) -> None:
    """Read, multiplied in float32 and rounded: ties, subnormal numbers, overflow, infinity, NaN."""
    value_dtype, side_dtype = DTYPES[f"{dtype}-f32"]
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    weights = torch.tensor([1, 1 + 2**-8, 1 + 2**-11, 1.5, 2**-9, -(2**-20)])
    sizes = {"batch": 1, "num_queries": len(weights), "num_heads": 1, "num_points": 1}
    problem = dataclasses.replace(
        draw("locations", [(1, 1)], dtype=value_dtype, side_dtype=side_dtype, **sizes),
        value=patterns.view(value_dtype).view(1, 1, 1, -1),
        sampling_locations=torch.full((1, len(weights), 1, 1, 1, 2), 0.5),
        attention_weights=weights.view(1, -1, 1, 1, 1),
    )
    expected = (weights[:, None] * patterns.view(value_dtype).float()).to(value_dtype)
    found = forward(problem, "locations", arm)[0]
    assert (found.isnan() == expected.isnan()).all()
    assert torch.equal(found.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e4, 1e38])
@pytest.mark.parametrize("form", FORMS)
def test_a_coordinate_that_is_no_number_is_outside(arm: str, form: str, bad: float) -> None:
    """Conversions to integers, of numbers that these cannot hold, differ between processors."""
    for dtype in ("f64", "f32", "bf16"):
        problem = draw(form, dtype=DTYPES[dtype][0])
        getattr(problem, names(form)[-2])[1, 2, 0, 1, 1] = bad
        check(problem, form, arm)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [16, 20])
def test_cells_that_are_not_read_do_not_leak(arm: str, dtype: str, head_dim: int) -> None:
    for form in FORMS:
        few = {"batch": 1, "num_heads": 1, "num_points": 1, "num_queries": 2}
        clean = draw(form, [(3, 4, 5)], dtype=DTYPES[dtype][0], head_dim=head_dim, **few)
        expected = results(clean.to(torch.float64), form, "reference")
        untouched = (expected[1] == 0).all(-1, keepdim=True)
        assert untouched.any()
        poisoned = torch.where(untouched, math.nan, clean.value)
        found = results(dataclasses.replace(clean, value=poisoned), form, arm)
        assert_results_close(found, expected, form)


# -- machine code --------------------------------------------------------------------------------

GATHER = """
typedef float Vector __attribute__((vector_size(16)));
template <class Real>
void gather(const Vector* rows, const Real* weight, long n, Vector* sum) {
  Vector a = {}, b = {};
#pragma GCC unroll 4
  for (long i = 0; i < n; ++i) {
    a += weight[i] * rows[2 * i];
    b += weight[i] * rows[2 * i + 1];
  }
  sum[0] = a;
  sum[1] = b;
}
template void gather<float>(const Vector*, const float*, long, Vector*);
"""


@functools.cache
def _kernels() -> str:
    """The machine code of the kernels."""
    return disassembly(emulated_arm.kernels())


def _gather(folder: Path, *flags: str) -> Loop:
    """The loop of GATHER."""
    source, output = folder / "gather.cpp", folder / "gather.o"
    source.write_text(GATHER)
    command = [emulated_arm.COMPILER, *emulated_arm.flags(), *flags, "-c", str(source)]
    subprocess.run([*command, "-o", str(output)], cwd=emulated_arm.ROOT, check=True)
    (loop,) = inner_loops(disassembly(output), "gather<float>")
    return loop


@pytest.mark.usefixtures("needs_arm")
def test_vectors_are_told_from_scalars(tmp_path: Path) -> None:
    """The same source, for a processor with vectors and for one without."""
    loop = _gather(tmp_path)
    assert (loop.in_vectors, loop.in_scalars) == (8, 0)
    loop = _gather(tmp_path, "-march=armv8-a+nosimd")
    assert (loop.in_vectors, loop.in_scalars) == (0, 32)


@pytest.mark.usefixtures("needs_arm")
@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float", 3), ("double", 3), ("stdeform::Half", 4), ("stdeform::BFloat16", 4)],
)
def test_gather_loops_are_vectorised(dtype: str, most: int) -> None:
    """All; and the best has few instructions for each multiplication: loads, conversions, rows."""
    name = rf"[Ff]orward\w*<{dtype}\b"
    loops = [
        loop
        for loop in inner_loops(_kernels(), name)
        if loop.in_vectors + loop.in_scalars >= 8  # corners; the loops that find them have fewer
    ]
    assert loops, f"no function named {name} has a loop that multiplies and adds"
    assert [loop.in_scalars for loop in loops] == [0] * len(loops)
    assert min(len(loop.instructions) / loop.in_vectors for loop in loops) < most


@pytest.mark.usefixtures("needs_arm")
def test_the_linker_merges_nothing_with_another_isa() -> None:
    """Else the portable level could run, say, a function of std compiled for AVX-512."""
    assert merged_functions(emulated_arm.kernels()) == []
