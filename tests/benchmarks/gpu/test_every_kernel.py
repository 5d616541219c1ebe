"""The problems of `benchmarks.gpu.every_kernel` reach every kernel, and see one that is wrong."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

import stdeform
from benchmarks.gpu import every_kernel
from benchmarks.gpu.stage import Stage
from stdeform import _native
from tests.benchmarks.gpu.test_stage import stage
from tests.cuda.emulator import build, emulated
from tests.support import cases
from tests.support.backends import on_machine


def test_every_kernel_is_launched() -> None:
    try:
        library = build.library(emulated.sources())
    except FileNotFoundError as error:
        pytest.skip(str(error))
    command = ["nm", "--demangle", str(library)]
    symbols = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    kernels = set(
        re.findall(r" [tTW] (?:void )?(stdeform::cuda::.*_kernel(?:<[^()]*>)?)\(", symbols)
    )
    assert len(kernels) > 100
    emulator = emulated.PLAIN.emulator
    emulator.take_launches()
    launched = set()
    for case in every_kernel.cases():
        way = every_kernel.WAYS[case.way]
        form = "locations" if way.form == "attention" else "points"
        machine = emulated.Machine(tuning=way.tuning, deterministic=way.deterministic)
        with on_machine(machine):
            cases.gradients(case.problem(), form, "emulated")
        # Written with template parameters; their values are those of the function that launches.
        launched |= {(each.kernel, each.launcher) for each in emulator.take_launches()}
    assert len(launched) == len(kernels)


def test_problems_are_few_enough_for_a_sanitizer() -> None:
    chosen = every_kernel.cases()
    assert len({case.label for case in chosen}) == len(chosen) <= 100


@pytest.mark.usefixtures("needs_native")
def test_every_problem_is_a_row_and_a_wrong_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = every_kernel.cases()
    chosen = [first, next(case for case in others if case.way == "in order")]
    right = stage(tmp_path, "right")
    assert every_kernel.run(right, chosen)
    assert [row["problem"] for row in right.read()["rows"]] == [case.label for case in chosen]
    # What was forced is put back.
    assert not torch.are_deterministic_algorithms_enabled()
    assert _native.options.cuda_tuning == {}
    ours = stdeform.st_deform_attn_from_offsets
    monkeypatch.setattr(
        stdeform, "st_deform_attn_from_offsets", lambda *given, **how: 1.01 * ours(*given, **how)
    )
    wrong = stage(tmp_path, "wrong")
    assert not every_kernel.run(wrong, chosen)
    assert wrong.read()["notes"][0].startswith(f"{chosen[0].label}: ")
    assert [row["error"] > 1 for row in wrong.read()["rows"]] == [True, False]


def test_a_problem_that_cannot_be_asked_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = every_kernel.cases()[:3]
    asked = []

    def error_of(case: every_kernel.Case, _: str) -> float:
        if case is chosen[1]:
            raise RuntimeError("CUDA error: an illegal memory access\nand more")
        return 0.5

    monkeypatch.setattr(every_kernel, "error_of", error_of)
    monkeypatch.setattr(Stage, "check_device", lambda this: asked.append(this))
    this = stage(tmp_path, "some")
    note = f"{chosen[1].label}: RuntimeError: CUDA error: an illegal memory access"
    for _ in range(2):  # another process goes on behind it
        assert not every_kernel.run(this, chosen)
        assert this.read()["notes"] == [note]
        assert (len(this.read()["rows"]), asked) == (2, [this])
