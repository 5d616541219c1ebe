"""The microbenchmarks of a GPU: their kernels, emulated, do what they are timed for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.costs import gpu_roofline
from benchmarks.measure import compiled
from tests.cuda import machine_code
from tests.cuda.emulator import build
from tests.cuda.emulator.emulator import Emulator


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    try:
        return Emulator(build.library([gpu_roofline.SOURCE], build.CHECKED))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def machine(emulator: Emulator) -> gpu_roofline.Machine:
    return gpu_roofline.Machine(emulator.functions, 2, "cpu")


@pytest.mark.parametrize("row_bytes", gpu_roofline.ROW_BYTES)
def test_gathers_read_whole_rows(
    row_bytes: int, machine: gpu_roofline.Machine, emulator: Emulator
) -> None:
    bench = machine.gather(row_bytes, "L1", 8 << 10)
    emulator.check()
    # 32 warps; six lanes a row leave two of 32 idle.
    rows = 32 * {64: 8, 96: 5, 128: 8, 192: 5}[row_bytes]
    assert bench.amount == rows * 512 * row_bytes


@pytest.mark.parametrize("numbers", gpu_roofline.NUMBERS)
def test_additions_reach_every_number_of_a_row(
    numbers: int, machine: gpu_roofline.Machine, emulator: Emulator
) -> None:
    for where, rows in (("spread", 1000), ("hot", 2)):
        bench = machine.add(numbers, where, rows)
        emulator.check()
        assert bench.amount == 1024 * 512 * numbers


def test_a_kernel_that_does_something_else_is_not_timed(
    machine: gpu_roofline.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu_roofline.random_rows
    monkeypatch.setattr(gpu_roofline, "random_rows", lambda *how: right(*how).roll(1, 0))
    with pytest.raises(gpu_roofline.WrongResultError, match="gather of 96 bytes, L1: its sums"):
        machine.gather(96, "L1", 8 << 10)
    monkeypatch.setattr(gpu_roofline, "random_rows", lambda *how: right(*how)[1:])
    with pytest.raises(gpu_roofline.WrongResultError, match="addition of 4 at once, spread: it"):
        machine.add(4, "spread", 1000)


def test_a_failed_launch_is_told(machine: gpu_roofline.Machine) -> None:
    with pytest.raises(RuntimeError, match="gather_rows failed with CUDA's error -1"):
        machine.gather(80, "L1", 8 << 10)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_nvcc_makes_a_library_that_loads_without_a_gpu(tmp_path: Path) -> None:
    library = compiled.cuda_library(gpu_roofline.SOURCE, "90")
    assert library.threads_of_block() == 512
    broken = tmp_path / "broken.cu"
    broken.write_text("int f() { return undeclared; }")
    with pytest.raises(RuntimeError, match=r"nvcc refuses broken\.cu:\n[\s\S]*undeclared"):
        compiled.cuda_library(broken, "90")


def test_machine_code_reads_and_adds_as_the_kernels_do(tmp_path: Path) -> None:
    try:
        cubin = machine_code.compile_source(gpu_roofline.SOURCE, tmp_path)
        kernels = machine_code.read_binary(cubin)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for kernel in kernels:
        assert not kernel.stack
        loads = [each.mnemonic for each in kernel.instructions if each.mnemonic.startswith("LDG")]
        adds = [each.mnemonic for each in kernel.instructions if each.mnemonic.startswith("RED")]
        if "gather" in kernel.name:
            assert len(loads) >= 8 * (2 if "2>" in kernel.name else 1)
            assert all("128" in load for load in loads)
        else:
            assert adds
            assert all((".F32x4." in add) == ("<4>" in kernel.name) for add in adds)
