// Device functions that CUDA's headers do not define for the host. Approximate ones are exact here:
// the error that they may have on a device is what the tolerances are for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "thread.h"

// Caches are not emulated: hints change nothing.
#define EMULATED_LOAD(NAME)                  \
  template <class T>                         \
  EMULATED_DEVICE T NAME(const T* address) { \
    return *address;                         \
  }
EMULATED_LOAD(__ldg)
EMULATED_LOAD(__ldca)
EMULATED_LOAD(__ldcg)
EMULATED_LOAD(__ldcs)
EMULATED_LOAD(__ldcv)
EMULATED_LOAD(__ldlu)
#undef EMULATED_LOAD
#define EMULATED_STORE(NAME)                       \
  template <class T>                               \
  EMULATED_DEVICE void NAME(T* address, T value) { \
    *address = value;                              \
  }
EMULATED_STORE(__stwb)
EMULATED_STORE(__stcg)
EMULATED_STORE(__stcs)
EMULATED_STORE(__stwt)
#undef EMULATED_STORE

// Threads take turns on one processor, which keeps its own accesses in order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

#define EMULATED_MIN_MAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
// The number, if only one is.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }  // NaN: 0
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }

namespace emulated {

// To an integer as a device converts: what does not fit becomes the nearest number that does, and
// NaN becomes zero. In C++ neither has a meaning.
template <class Int, class Real>
Int saturated(Real x) {
  if (std::isnan(x)) return 0;
  constexpr Int most = static_cast<Int>((~std::uint64_t{0} >> (64 - 8 * sizeof(Int))) >> 1);
  constexpr Real end = static_cast<Real>(std::uint64_t{1} << (8 * sizeof(Int) - 1));
  return x >= end ? most : x < -end ? -most - 1 : static_cast<Int>(x);
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace emulated

#define EMULATED_CONVERSIONS(PREFIX, Int, Real)                                          \
  inline Int PREFIX##_rn(Real x) { return emulated::saturated<Int>(std::nearbyint(x)); } \
  inline Int PREFIX##_rz(Real x) { return emulated::saturated<Int>(x); }                 \
  inline Int PREFIX##_rd(Real x) { return emulated::saturated<Int>(std::floor(x)); }     \
  inline Int PREFIX##_ru(Real x) { return emulated::saturated<Int>(std::ceil(x)); }
EMULATED_CONVERSIONS(__float2int, int, float)
EMULATED_CONVERSIONS(__float2ll, long long, float)
EMULATED_CONVERSIONS(__double2int, int, double)
EMULATED_CONVERSIONS(__double2ll, long long, double)
#undef EMULATED_CONVERSIONS
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return emulated::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated::same_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}

// In float and rounded once: the product of two halves is exact in it.
inline __half __hfma(__half a, __half b, __half c) {
  return __float2half(std::fma(__half2float(a), __half2float(b), __half2float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16(std::fma(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
