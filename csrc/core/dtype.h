// Element types in memory, and scalar conversion to and from them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace stdeform {

enum class DType : int { f64 = 0, f32 = 1, f16 = 2, bf16 = 3 };

constexpr int size_of(DType dtype) {  // in bytes
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which coordinates, softmax and sums are computed, for each type of value.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

// Internal linkage throughout: isa_*.cpp compile this header for different instruction sets, and
// the linker must never merge their copies.
namespace {

// Calls f with a zero of the dtype's C++ type, so that f can take it from decltype.
template <class F>
inline void visit_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f64: return f(double());
    case DType::f32: return f(float());
    case DType::f16: return f(Half());
    case DType::bf16: return f(BFloat16());
  }
}

template <class To, class From>
STDEFORM_HOST_DEVICE inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

STDEFORM_HOST_DEVICE inline double to_real(double x) { return x; }
STDEFORM_HOST_DEVICE inline float to_real(float x) { return x; }
STDEFORM_HOST_DEVICE inline float to_real(BFloat16 x) {
  return bit_cast<float>(uint32_t(x.bits) << 16);
}
STDEFORM_HOST_DEVICE inline float to_real(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  // The multiplication rebiases the exponent, and is right for subnormals too.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity and NaN
  return bit_cast<float>(sign | ((x.bits & 0x7c00) == 0x7c00 ? special : finite));
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
STDEFORM_HOST_DEVICE inline void from_real(double x, double& out) { out = x; }
STDEFORM_HOST_DEVICE inline void from_real(double x, float& out) { out = float(x); }
STDEFORM_HOST_DEVICE inline void from_real(float x, float& out) { out = x; }
STDEFORM_HOST_DEVICE inline void from_real(float x, BFloat16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}
STDEFORM_HOST_DEVICE inline void from_real(float x, Half& out) {
#ifdef __CUDA_ARCH__
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Below 2^-14: adding 0.5 aligns the value, so that its last bit is the smallest subnormal half.
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
  // 65520 is the first value that rounds to infinity.
  const uint32_t rounded =
      magnitude < 0x38800000u ? subnormal : (magnitude < 0x477ff000u ? normal : special);
  out.bits = uint16_t(sign | rounded);
#endif
}

}  // namespace
}  // namespace stdeform
