"""What the compiler made of the portable CPU kernels for Arm."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

from tests.cross.machine_code import Loop, disassembly, inner_loops, merged_functions
from tests.cross.targets import ARM, ROOT

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
    return disassembly(ARM.kernels("portable"))


def _gather(folder: Path, *flags: str) -> Loop:
    """The loop of GATHER."""
    source, output = folder / "gather.cpp", folder / "gather.o"
    source.write_text(GATHER)
    command = ARM.compile_command(str(source), *flags)
    subprocess.run([*command, "-o", str(output)], cwd=ROOT, check=True)
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
    assert merged_functions(ARM.kernels("portable")) == []
