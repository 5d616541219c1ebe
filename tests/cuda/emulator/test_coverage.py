"""Every line of the CUDA kernels is run, on the processor, by the problems of operator_main.cpp."""

from __future__ import annotations

from tests.cuda.emulator import coverage


def test_every_line_is_reached() -> None:
    found = coverage.measure()
    assert {"csrc/cuda/forward.cuh", "csrc/cuda/backward.cuh", "csrc/core/sampling.h"} <= set(found)
    assert {name: file.missed for name, file in found.items() if file.missed} == {}
    # Instantiations make one file's branches many; most of them must go both ways somewhere.
    branches = sum(file.branches for file in found.values())
    assert sum(file.branches_taken for file in found.values()) > 0.7 * branches


def test_what_is_not_reached_is_seen() -> None:
    file = coverage.Coverage({3: 0, 7: 12, 9: 0}, branches=4, branches_taken=1)
    assert file.missed == [3, 9]
    assert coverage.table({"name.cuh": file}).splitlines()[-1] == "| name.cuh | 3 | 1 | 4 | 1 |"
