"""What nvcc makes of the CUDA kernels, and that its reader sees what it must."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.cuda import machine_code
from tests.cuda.machine_code import Instruction, Kernel, Loop

# A kernel of an inner loop that leaves in the middle, and one around it.
LISTING = """
		Function : _Z6nestedPfi
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
                                                                       /* 0x000fe20000000800 */
        /*0010*/                   S2R R3, SR_TID.X ;                  /* 0x0000000000037919 */
        /*0020*/                   UIADD3 UR4, UR4, 0x1, URZ ;         /* 0x0000000000037919 */
        /*0030*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ; /* 0x00 */
        /*0040*/              @!P0 BRA 0x70 ;                          /* 0x0000000000288947 */
        /*0050*/                   FFMA R0, R0, 2, R4 ;                /* 0x0000000000288947 */
        /*0060*/              @!UP1 BRA 0x30 ;                         /* 0x0000000000288947 */
        /*0070*/          @P2 RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R0 ; /* 0x00 */
        /*0080*/               @P1 BRA 0x20 ;                          /* 0x0000000000288947 */
        /*0090*/                   EXIT ;                              /* 0x000000000000794d */
        /*00a0*/                   BRA 0xa0 ;                          /* 0xfffffff000fc7947 */
        /*00b0*/                   NOP ;                               /* 0x0000000000007918 */
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _Z6nestedPfi:
  REG:14 STACK:8 SHARED:512 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

FAULTS = """
#include <cuda_fp16.h>

__global__ void sound(float* p, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) sum = sum * 2 + p[i * 32 + threadIdx.x];
  atomicAdd(p, sum);
}
__global__ void local_array(float* p, int n) {
  float rows[64];
  for (int i = 0; i < 64; ++i) rows[i] = p[i];
  for (int i = 0; i < n; ++i) rows[i * 7 & 63] += rows[i * 5 & 63];
  p[0] = rows[n & 63];
}
__global__ void __launch_bounds__(1024, 2) spills(float* p) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = x[i] * x[63 - i];
}
__global__ void pair_of_halves(__half2* p) { atomicAdd(p, __half2()); }
__global__ void used_result(float* p) { p[1] = atomicAdd(p, 1.0f); }
"""


def _need(name: str) -> str:
    try:
        return machine_code.tool(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@functools.cache
def _planted(arch: str) -> dict[str, Kernel]:
    """The kernels of FAULTS, compiled."""
    _need("cuobjdump"), _need("nvdisasm")
    folder = Path(machine_code.ROOT, "build", "machine_code")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "faults.cu"
    source.write_text(FAULTS)
    try:
        cubin = machine_code.compile_source(source, folder, arch)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return {kernel.name: kernel for kernel in machine_code.read_binary(cubin, arch)}


@functools.cache
def _built(arch: str) -> dict[str, Kernel]:
    """The operator's kernels, as the installed native core has them."""
    try:
        return {kernel.name: kernel for kernel in machine_code.installed(arch)}
    except (FileNotFoundError, LookupError) as error:
        pytest.skip(str(error))


# -- the reader ----------------------------------------------------------------------------------


def test_listings_are_read() -> None:
    (code,) = machine_code._disassembly(LISTING).values()
    assert [each.mnemonic.split(".")[0] for each in code] == [
        *("LDC", "S2R", "UIADD3", "LDG", "BRA", "FFMA", "BRA", "RED", "BRA", "EXIT", "BRA"),
    ]
    assert code[3] == Instruction(0x30, "LDG.E.128.CONSTANT", "R4, desc[UR4][R2.64]")
    assert [each.target for each in code if each.target is not None] == [0x70, 0x30, 0x20, 0xA0]
    assert machine_code._resources(USAGE) == {"_Z6nestedPfi": (14, 8, 512)}


def test_inner_loops_are_found() -> None:
    (code,) = machine_code._disassembly(LISTING).values()
    (loop,) = Kernel("nested", 14, 0, 0, code).inner_loops()
    assert [each.address for each in loop.instructions] == [0x30, 0x40, 0x50, 0x60]
    assert loop.counts == {"LDG": 1, "float": 1, "branch": 2}
    assert loop.loaded_bytes == 16
    assert loop.per_sample(loads_per_sample=1, samples_at_once=4) == 1
    assert Loop(()).per_sample(1) == float("inf")


@pytest.mark.parametrize(
    ("mnemonic", "name"),
    [
        ("LDGSTS.E", "LDG"),
        ("LDS.128", "LDS"),
        ("STL.64", "local"),
        ("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU", "RED"),
        ("ATOMS.CAST.SPIN", "ATOM"),
        ("QSPC.E.S", "ATOM"),
        ("REDUX.SUM", "SHFL"),
        ("FFMA2", "float"),
        ("HFMA2.MMA", "half"),
        ("F2I.FTZ.TRUNC.NTZ", "convert"),
        ("ULDC", "LDC"),
        ("UIMAD.WIDE", "uniform"),
        ("BRA.U", "branch"),
        ("ISETP.GE.AND", "integer"),
    ],
)
def test_classes(mnemonic: str, name: str) -> None:
    assert machine_code.classify(mnemonic) == name


def test_a_sound_kernel() -> None:
    kernel = _planted("sm_90")["sound"]
    assert kernel.faults() == []
    (loop,) = kernel.inner_loops()
    assert loop.counts["LDG"] == 1
    assert loop.counts["float"] == 1
    assert "RED" in {machine_code.classify(each.mnemonic) for each in kernel.instructions}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("local_array", "LDL"),
        ("local_array", "bytes of stack"),
        ("spills", "STL"),
        ("pair_of_halves", "QSPC"),
        ("used_result", "ATOM"),
    ],
)
def test_faults_are_seen(name: str, word: str) -> None:
    assert any(word in fault for fault in _planted("sm_90")[name].faults())


def test_registers_are_counted() -> None:
    kernel = _planted("sm_90")["spills"]
    assert kernel.registers == 32  # what 2048 threads of 64 Ki registers leave each
    assert "32 registers, more than 31" in kernel.faults(max_registers=31)
    assert not any("registers" in fault for fault in kernel.faults(max_registers=32))


def test_the_table() -> None:
    kernels = _planted("sm_90").values()
    rows = machine_code.table(kernels, loops=True).splitlines()
    assert len(rows) == 2 + len(FAULTS.split("__global__")) - 1
    assert len({row.count("|") for row in rows}) == 1
    assert rows[-1].startswith("| used_result | ")


# -- the kernels ---------------------------------------------------------------------------------


# A multiprocessor has 64 Ki registers; these leave room for the warps that the kernels count on.
def _most_registers(kernel: str) -> int:
    if "backward" in kernel and "<double" in kernel:
        return 255
    return 168 if kernel.startswith(("forward", "backward")) else 128


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_kernels_have_no_faults(arch: str) -> None:
    faults = {
        name: found
        for name, kernel in _built(arch).items()
        if (found := kernel.faults(max_registers=_most_registers(name)))
    }
    assert faults == {}


def test_instructions_per_sample() -> None:
    # float32, 48 channels: 6 lanes share a row, 5 rows a warp; a lane loads 2 runs at 8 corners.
    kernel = _built("sm_90")["forward_kernel<float, 3, RowLayout<6, 2, 4, true> >"]
    loop = kernel.inner_loops()[0]
    assert loop.counts["LDG"] % 16 == 0
    assert loop.per_sample(loads_per_sample=16, samples_at_once=5) < 23


@pytest.mark.parametrize("dtype", ["float", "BFloat16"])
def test_newer_devices_multiply_and_add_in_pairs(dtype: str) -> None:
    group = 4 if dtype == "float" else 8
    layout = f"RowLayout<6, {8 // group}, {group}, true>"
    loop = _built("sm_100")[f"forward_kernel<{dtype}, 3, {layout} >"].inner_loops()[0]
    mnemonics = [each.mnemonic.split(".")[0] for each in loop.instructions]
    assert "FFMA" not in mnemonics
    loads_per_sample = 8 * 8 // group  # of a lane: corners, runs of its eight channels
    samples = mnemonics.count("LDG") / loads_per_sample  # the loop is unrolled
    assert mnemonics.count("FFMA2") == samples * 8 * 8 // 2
