"""That the interpreter of machine code computes and counts what a GPU would."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.machine_code import machine_code, sass
from tests.cuda.machine_code.machine_code import Kernel
from tests.cuda.machine_code.sass import Launch, Memory, SassError
from tests.cuda.machine_code.sass_operations import UnknownInstructionError

# Each writes what NumPy computes as well; a thread has one row of in and out.
TOYS = """
#include <cstdint>
#define AT (blockIdx.x * blockDim.x + threadIdx.x)

__global__ void divide(const int32_t* a, const int32_t* b, int32_t* out) {
  const int i = AT;
  out[4 * i] = a[i] / b[i];
  out[4 * i + 1] = a[i] % b[i];
  out[4 * i + 2] = uint32_t(a[i]) / uint32_t(b[i]);
  out[4 * i + 3] = uint32_t(a[i]) % uint32_t(b[i]);
}
__global__ void divide_wide(const int64_t* a, const int64_t* b, int64_t* out) {
  const int i = AT;
  out[4 * i] = a[i] / b[i];
  out[4 * i + 1] = a[i] % b[i];
  out[4 * i + 2] = uint64_t(a[i]) / uint64_t(b[i]);
  out[4 * i + 3] = uint64_t(a[i]) % uint64_t(b[i]);
}
__global__ void wide(const int64_t* a, const int64_t* b, int64_t* out) {
  const int i = AT;
  const int by = b[i] & 63;
  out[13 * i] = a[i] + b[i];
  out[13 * i + 1] = a[i] - b[i];
  out[13 * i + 2] = a[i] * b[i];
  out[13 * i + 3] = a[i] << by;
  out[13 * i + 4] = a[i] >> by;
  out[13 * i + 5] = uint64_t(a[i]) >> by;
  out[13 * i + 6] = (a[i] < b[i]) + 2 * (uint64_t(a[i]) < uint64_t(b[i])) + 4 * (a[i] == b[i]);
  out[13 * i + 7] = (a[i] >= b[i]) + 2 * (uint64_t(a[i]) > uint64_t(b[i])) + 4 * (a[i] != b[i]);
  out[13 * i + 8] = -a[i];
  out[13 * i + 9] = __umul64hi(a[i], b[i]);
  out[13 * i + 10] = __mul64hi(a[i], b[i]);
  out[13 * i + 11] = a[i] * 12 + int32_t(b[i]);
  out[13 * i + 12] = int64_t(int32_t(a[i])) * int32_t(b[i]) + b[i];
}
__global__ void bits(const uint32_t* a, const uint32_t* b, uint32_t* out) {
  const int i = AT;
  const uint32_t x = a[i], y = b[i];
  out[14 * i] = x << (y & 31);
  out[14 * i + 1] = x >> (y & 31);
  out[14 * i + 2] = int32_t(x) >> (y & 31);
  out[14 * i + 3] = __umulhi(x, y);
  out[14 * i + 4] = __mulhi(int(x), int(y));
  out[14 * i + 5] = __byte_perm(x, y, 0x3715);
  out[14 * i + 6] = __popc(x);
  out[14 * i + 7] = __clz(x);
  out[14 * i + 8] = __brev(x);
  out[14 * i + 9] = (x & y) ^ (x | ~y);
  out[14 * i + 10] = min(int(x), int(y)) + 3 * max(x, y);
  out[14 * i + 11] = abs(int(x));
  out[14 * i + 12] = int8_t(x) * 5 + uint16_t(y);
  out[14 * i + 13] = __funnelshift_l(x, y, y & 31);
}
__global__ void reals(const float* a, const float* b, float* out) {
  const int i = AT;
  const float x = a[i], y = b[i];
  out[12 * i] = x / y;
  out[12 * i + 1] = fmaf(x, y, x);
  out[12 * i + 2] = expf(x);
  out[12 * i + 3] = floorf(x) - ceilf(y);
  out[12 * i + 4] = int(x);
  out[12 * i + 5] = __uint_as_float(unsigned(x));
  out[12 * i + 6] = float(__float_as_int(x)) * float(__float_as_uint(y));
  out[12 * i + 7] = fminf(x, y) - fmaxf(x, y);
  out[12 * i + 8] = fabsf(x) * -y;
  out[12 * i + 9] = (x < y) + 2 * (x == y) + 4 * !(x >= y) + 8 * (x != x);
  out[12 * i + 10] = sqrtf(fabsf(x));
  out[12 * i + 11] = rintf(x) + truncf(y);
}
__global__ void directed(const float* a, const float* b, float* out) {
  const int i = AT;
  out[3 * i] = __fmaf_rd(a[i], b[i], a[i]);
  out[3 * i + 1] = __fmaf_ru(a[i], b[i], a[i]);
  out[3 * i + 2] = __fmaf_rz(a[i], b[i], a[i]);
}
__global__ void meet(const int32_t* a, const int32_t* b, int32_t* out) {
  __shared__ int32_t sums[4];
  const int i = AT, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t sum = 0;
#pragma unroll 1
  for (int k = 0; k < (a[i] & 7); ++k) {  // lanes leave this loop one after another
    if (b[i] >> k & 1) continue;
    if (sum > 1000) break;
    sum += k * a[i];
  }
  out[4 * i] = sum;
  for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  out[4 * i + 1] = sums[3 - warp] - __shfl_up_sync(~0u, b[i], 3);
  out[4 * i + 2] = __ballot_sync(~0u, a[i] & 1) + __any_sync(~0u, b[i] == 7);
  out[4 * i + 3] = __shfl_sync(~0u, a[i], b[i], 8) + __shfl_down_sync(~0u, b[i], 3, 8);
}
__global__ void add(const int32_t* a, const int32_t* b, int32_t* out) {
  const int i = AT;
  atomicAdd(&out[0], a[i] & 15);
  atomicAdd(reinterpret_cast<float*>(&out[1]), float(b[i] & 15));
  out[3 + i] = atomicAdd(&out[2], 1);
}
struct __align__(16) Numbers { int8_t first; double second; int32_t rest[5]; };
__global__ void parameters(char before, const __grid_constant__ Numbers numbers, short after,
                           int32_t* out) {
  const int i = AT;
  out[i] = before + numbers.first + numbers.rest[i % 5] + 1000 * after + 10000 * gridDim.x;
}
__global__ void past_the_end(const int32_t* a, const int32_t*, int32_t* out) {
  out[AT] = a[AT + 1];
}
__global__ void absent_lane(const int32_t* a, const int32_t*, int32_t* out) {
  if (threadIdx.x % 32 < 16) out[AT] = __shfl_xor_sync(0xffffu, a[AT], 16);
}
__global__ void unknown(const int32_t* a, const int32_t*, int32_t* out) {
  out[AT] = __dp4a(a[AT], 1, 2);
}
"""
# Lanes 0 to 7 of a warp go one way and the others another, which comes after the rest of the code.
# They meet and go round a loop, lane l l % 4 + 1 times. The first ones end early, and the second
# warp comes to the block's barrier the long way round. c[0x0][0x210] is an address.
LISTING = """
	Function : parted
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LOP3.LUT R1, R0, 0x1f, RZ, 0xc0, !PT ;
        /*0020*/                   ISETP.GE.AND P0, PT, R1, 0x8, PT ;
        /*0030*/                   BSSY B0, 0x60 ;
        /*0040*/               @P0 BRA 0x180 ;
        /*0050*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0060*/                   BSYNC B0 ;
        /*0070*/               @P0 IADD3 R2, R2, 0x10, RZ ;
        /*0080*/                   LOP3.LUT R3, R1, 0x3, RZ, 0xc0, !PT ;
        /*0090*/                   BSSY B0, 0xd0 ;
        /*00a0*/                   VIADD R3, R3, 0xffffffff ;
        /*00b0*/                   ISETP.GE.AND P1, PT, R3, RZ, PT ;
        /*00c0*/               @P1 BRA 0xa0 ;
        /*00d0*/                   BSYNC B0 ;
        /*00e0*/              @!P0 EXIT ;
        /*00f0*/                   ISETP.GE.AND P2, PT, R0, 0x20, PT ;
        /*0100*/               @P2 BRA 0x1a0 ;
        /*0110*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0120*/                   LDS R6, [RZ+0x10] ;
        /*0130*/                   IADD3 R2, R2, R6, RZ ;
        /*0140*/                   LDC.64 R4, c[0x0][0x210] ;
        /*0150*/                   IMAD.WIDE.U32 R4, R0, 0x4, R4 ;
        /*0160*/                   STG.E desc[UR4][R4.64], R2 ;
        /*0170*/                   EXIT ;
        /*0180*/                   IADD3 R2, R2, 0x2, RZ ;
        /*0190*/                   BRA 0x60 ;
        /*01a0*/                   MOV R7, 0x64 ;
        /*01b0*/                   STS [RZ+0x10], R7 ;
        /*01c0*/                   BRA 0x110 ;
"""
# Of two warps: both, or one more for each part of a warp that goes another way, or one.
ISSUED = [2, 2, 2, 2, 2, 2, 4, 2, 2, 2, 8, 8, 8, 8, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]

BLOCKS, THREADS = 3, 128
COUNT = BLOCKS * THREADS


@functools.cache
def _toys() -> dict[str, Kernel]:
    for name in ("cuobjdump", "nvdisasm"):
        try:
            machine_code.tool(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))
    folder = Path(machine_code.ROOT, "build", "machine_code")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "toys.cu"
    source.write_text(TOYS)
    try:
        cubin = machine_code.compile_source(source, folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return {kernel.name: kernel for kernel in machine_code.read_binary(cubin)}


def _run(name: str, *arrays: sass.Array, before: tuple[tuple[bytes, int], ...] = ()) -> None:
    regions = [(array.ctypes.data, array.nbytes) for array in arrays]
    pointers = [(np.uint64(start).tobytes(), 8) for start, _ in regions]
    launch = Launch((BLOCKS, 1, 1), (THREADS, 1, 1), [*before, *pointers])
    sass.run(_toys()[name], launch, Memory(regions))


def _integers(dtype: type, seed: int) -> sass.Array:
    """Numbers of all sizes, and those at the ends."""
    random = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    numbers = random.integers(limits.min, limits.max, COUNT, dtype, endpoint=True)
    numbers >>= random.integers(0, limits.bits, COUNT).astype(dtype)
    numbers[:8] = [limits.max, limits.min, 1, -1, 2, 7, limits.max - 1, limits.min + 1]
    return numbers


def _check(name: str, a: sass.Array, b: sass.Array, *expected: sass.Array) -> None:
    out = np.zeros((COUNT, len(expected)), a.dtype)
    _run(name, a, b, out)
    for i, column in enumerate(expected):
        np.testing.assert_array_equal(out[:, i], column.astype(a.dtype), f"column {i}")


def _truncated(a: sass.Array, b: sass.Array) -> tuple[sass.Array, sass.Array]:
    """Quotient and remainder as C++ has them, in Python's integers."""
    pairs = [
        (abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1), x)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    quotient = [q for q, _ in pairs]
    remainder = [x - q * y for (q, x), y in zip(pairs, b.tolist(), strict=True)]
    kind = a.dtype
    bits = kind.itemsize * 8
    return tuple(
        np.array([each % 2**bits for each in column], f"u{kind.itemsize}").astype(kind)
        for column in (quotient, remainder)
    )


@pytest.mark.parametrize("name", ["divide", "divide_wide"])
def test_integer_division(name: str) -> None:
    kind = np.int32 if name == "divide" else np.int64
    a, b = _integers(kind, 0), np.roll(_integers(kind, 1), 3)
    b[b == 0] = 3
    b[(a == np.iinfo(kind).min) & (b == -1)] = 5
    unsigned = a.view(f"u{a.itemsize}"), b.view(f"u{a.itemsize}")
    _check(name, a, b, *_truncated(a, b), unsigned[0] // unsigned[1], unsigned[0] % unsigned[1])


def test_wide_integers() -> None:
    a, b = _integers(np.int64, 2), np.roll(_integers(np.int64, 3), 2)
    b[20:40] = a[20:40]
    b[40:50] = a[40:50] ^ 1
    x, y = a.view(np.uint64), b.view(np.uint64)
    by = b & 63

    def high(a: sass.Array, b: sass.Array) -> sass.Array:
        products = [p * q >> 64 for p, q in zip(a.tolist(), b.tolist(), strict=True)]
        return np.array([each % 2**64 for each in products], np.uint64)

    low = [each.astype(np.int32).astype(np.int64) for each in (a, b)]
    with np.errstate(over="ignore"):
        _check(
            "wide",
            a,
            b,
            a + b,
            a - b,
            a * b,
            a << by,
            a >> by,
            x >> by.astype(np.uint64),
            (a < b) + 2 * (x < y) + 4 * (a == b),
            (a >= b) + 2 * (x > y) + 4 * (a != b),
            -a,
            high(x, y),
            high(a, b),
            a * 12 + low[1],
            low[0] * low[1] + b,
        )


def test_bits() -> None:
    a, b = (np.roll(_integers(np.int32, seed), seed).view(np.uint32) for seed in (4, 5))
    by = b & 31
    wide = [each.astype(np.uint64) for each in (a, b)]
    signed = [each.view(np.int32).astype(np.int64) for each in (a, b)]
    bytes_of = np.stack([a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4)], 1)
    bytes_of = bytes_of.reshape(-1, 8)
    permuted = np.ascontiguousarray(bytes_of[:, [5, 1, 7, 3]]).view(np.uint32)[:, 0]
    text = [f"{each:032b}" for each in a.tolist()]
    funnel = np.where(by > 0, (wide[1] << by | wide[0] >> (32 - by)) & 0xFFFFFFFF, b)
    narrow = a.astype(np.int8).astype(np.int64) * 5 + b.astype(np.uint16)
    least = np.minimum(*signed) + 3 * np.maximum(*wide).astype(np.int64)
    _check(
        "bits",
        a,
        b,
        a << by,
        a >> by,
        signed[0] >> by.astype(np.int64),
        wide[0] * wide[1] >> 32,
        signed[0] * signed[1] >> 32,
        permuted,
        np.array([each.count("1") for each in text]),
        np.array([len(each) - len(each.lstrip("0")) for each in text]),
        np.array([int(each[::-1], 2) for each in text]),
        (a & b) ^ (a | ~b),
        least,
        np.abs(signed[0]),
        narrow,
        funnel,
    )


def test_reals() -> None:
    random = np.random.default_rng(6)
    a, b = (random.standard_normal(COUNT).astype(np.float32) * 30 for _ in range(2))
    a[:12] = [0, -0.0, 1, np.inf, -np.inf, np.nan, 2.5, -2.5, 1e-41, 3e38, 1e-30, 50]
    b[:12] = [1, 2, 3, 2, 1, 1, 2.5, 3.5, 1, 1e-38, 1e30, 1e-41]
    a[12], b[12] = 5, np.nan
    out = np.zeros((COUNT, 12), np.float32)
    _run("reals", a, b, out)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = [
            x / y,
            x * y + x,
            np.exp(x),
            np.floor(x) - np.ceil(y),
            np.nan_to_num(np.clip(np.trunc(x), -(2**31), 2**31 - 1)),
            np.nan_to_num(np.clip(np.trunc(x), 0, 2**32 - 1)).astype(np.uint32).view(np.float32),
            a.view(np.int32).astype(np.float32) * b.view(np.uint32).astype(np.float32),
            np.fmin(x, y) - np.fmax(x, y),
            np.abs(x) * -y,
            (x < y) + 2.0 * (x == y) + 4 * ~(x >= y) + 8 * np.isnan(x),
            np.sqrt(np.abs(x)),
            np.rint(x) + np.trunc(y),
        ]
        for i, column in enumerate(exact):
            tolerance = 4e-7 if i in (2, 10) else 1.2e-7 if i in (0, 1, 8) else 0
            np.testing.assert_allclose(
                out[:, i], column.astype(np.float32), tolerance, 1e-45, err_msg=f"column {i}"
            )


def test_directed_rounding() -> None:
    random = np.random.default_rng(10)
    a, b = (random.standard_normal(COUNT).astype(np.float32) for _ in range(2))
    out = np.zeros((COUNT, 3), np.float32)
    _run("directed", a, b, out)
    nearest = (a.astype(np.float64) * b + a).astype(np.float32)
    around = [np.nextafter(nearest, np.float32(end)) for end in (-np.inf, np.inf)]
    for x, y, near, below, above, found in zip(a, b, nearest, *around, out, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(x))
        down = near if near <= exact else below
        up = near if near >= exact else above
        assert found.tolist() == [down, up, down if exact > 0 else up]


def test_lanes_part_and_meet() -> None:
    random = np.random.default_rng(7)
    a, b = (random.integers(0, 400, COUNT).astype(np.int32) for _ in range(2))
    sums = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        total = 0
        for k in range(x & 7):
            if y >> k & 1:
                continue
            if total > 1000:
                break
            total += k * x
        sums.append(total)
    of_warp = np.array(sums).reshape(BLOCKS, 4, 32).sum(2)
    lanes = np.arange(COUNT)
    above = np.where(lanes % 32 < 3, lanes, lanes - 3)
    ballot = ((a.reshape(-1, 32) & 1) << np.arange(32)).sum(1) + (b.reshape(-1, 32) == 7).any(1)
    _check(
        "meet",
        a,
        b,
        np.array(sums),
        np.repeat(of_warp[:, ::-1].reshape(-1), 32) - b[above],
        np.repeat(ballot, 32),
        a[lanes // 8 * 8 + b % 8] + b[np.where(lanes % 8 < 5, lanes + 3, lanes)],
    )


def test_atomic_additions() -> None:
    a, b = _integers(np.int32, 8), _integers(np.int32, 9)
    out = np.zeros(3 + COUNT, np.int32)
    _run("add", a, b, out)
    assert out[0] == (a & 15).sum()
    assert out[1:2].view(np.float32)[0] == (b & 15).sum()
    assert out[2] == COUNT
    assert sorted(out[3:].tolist()) == list(range(COUNT))


def test_parameters() -> None:
    numbers = np.zeros(48, np.uint8)
    numbers[0] = 3
    numbers[16:36] = np.arange(5, dtype=np.int32).view(np.uint8) * 10
    out = np.zeros(COUNT, np.int32)
    before = ((b"\x02", 1), (numbers.tobytes(), 16), (np.int16(7).tobytes(), 2))
    _run("parameters", out, before=before)
    assert (out == 37005 + np.arange(COUNT) % 5 * 10).all()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("past_the_end", SassError, "past_the_end at .* LDG.E.*: no access to 4 bytes at 0x"),
        ("absent_lane", SassError, "absent_lane at .* SHFL.BFLY .*a lane that does not take part"),
        ("unknown", UnknownInstructionError, "unknown at .*, .*: the interpreter does not know it"),
    ],
)
def test_faults_are_seen(name: str, error: type[Exception], message: str) -> None:
    a, b, out = (np.zeros(COUNT, np.int32) for _ in range(3))
    with pytest.raises(error, match=message):
        _run(name, a, b, out)


# -- counts --------------------------------------------------------------------------------------


def _listed(code: str) -> Kernel:
    ((name, instructions),) = machine_code._disassembly(code).items()
    return Kernel(name, 32, 0, 1024, instructions)


def _aligned(count: int) -> sass.Array:
    """Zeros from the start of a line on."""
    array = np.zeros(count + 32, np.int32)
    skip = -array.ctypes.data % 128 // 4
    return array[skip : skip + count]


def test_parts_of_a_warp_are_counted() -> None:
    out = _aligned(64)
    place = np.uint64(out.ctypes.data).tobytes()
    memory = Memory([(out.ctypes.data, out.nbytes)])
    counts = sass.run(_listed(LISTING), Launch((1, 1, 1), (64, 1, 1), [(place, 8)]), memory)
    assert out.tolist() == [0 if i % 32 < 8 else 118 for i in range(64)]
    assert counts.issued.tolist() == ISSUED


@pytest.mark.parametrize(
    ("load", "shift", "transfers"),
    [
        ("LDG.E R2, desc[UR4][R4.64]", 2, 1),
        ("LDG.E R2, desc[UR4][R4.64]", 3, 2),
        ("LDG.E R2, desc[UR4][R4.64]", 7, 32),
        ("LDG.E.128 R8, desc[UR4][R4.64]", 4, 4),
        ("LDG.E R2, desc[UR4][R6.64]", 0, 1),  # all from one place
        ("LDS R2, [R1]", 2, 1),
        ("LDS R2, [R1]", 3, 2),
        ("LDS R2, [R1]", 7, 32),
        ("LDS R2, [RZ]", 0, 1),
        ("LDS.128 R8, [R1]", 4, 4),
        ("LDS.64 R8, [R1]", 4, 4),
    ],
)
def test_transfers(load: str, shift: int, transfers: int) -> None:
    code = f"""Function : loads
        /*0000*/ S2R R0, SR_LANEID ;
        /*0010*/ LDC.64 R6, c[0x0][0x210] ;
        /*0020*/ SHF.L.U32 R1, R0, {shift:#x}, RZ ;
        /*0030*/ IADD3 R4, P0, R6, R1, RZ ;
        /*0040*/ IADD3.X R5, R7, RZ, RZ, P0, !PT ;
        /*0050*/ {load} ;
        /*0060*/ EXIT ;
"""
    array = _aligned(1024)
    place = np.uint64(array.ctypes.data).tobytes()
    memory = Memory([(array.ctypes.data, array.nbytes)])
    launch = Launch((1, 1, 1), (32, 1, 1), [(place, 8)], dynamic_bytes=4096)
    assert sass.run(_listed(code), launch, memory).transfers[5] == transfers
