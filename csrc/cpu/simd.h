// Vectors of the SIMD level being compiled: loads from every element type, corner-sum reduction.
//
// Included once per level (level_*.cpp), with STDEFORM_VECTOR_BYTES set. Everything here has
// internal linkage: see dtype.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "dtype.h"

namespace stdeform {
namespace {

constexpr int kVectorBytes = STDEFORM_VECTOR_BYTES;

template <class Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(kVectorBytes)));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;

template <class Real>
constexpr int kLanes = kVectorBytes / int(sizeof(Real));

// Integers of the same width, so that a vector has as many of them.
template <class Real>
using IntOf = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
template <class Real>
using IntVector = Vector<IntOf<Real>>;

inline IntVector<float> truncate(Vector<float> x) {
  return __builtin_convertvector(x, IntVector<float>);
}
inline IntVector<double> truncate(Vector<double> x) {
  return __builtin_convertvector(x, IntVector<double>);
}
inline Vector<float> to_float(IntVector<float> x) {
  return __builtin_convertvector(x, Vector<float>);
}
inline Vector<double> to_float(IntVector<double> x) {
  return __builtin_convertvector(x, Vector<double>);
}

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class To, class From>
inline To load_bits(const From* from) {
  To to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

inline Vector<double> load(const double* from) { return load_bits<Vector<double>>(from); }
inline Vector<float> load(const float* from) { return load_bits<Vector<float>>(from); }
inline Vector<int32_t> load(const int32_t* from) { return load_bits<Vector<int32_t>>(from); }
inline Vector<int64_t> load(const int64_t* from) { return load_bits<Vector<int64_t>>(from); }

typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

inline Vector<float> load(const BFloat16* from) {
  const Bits32 bits = __builtin_convertvector(load_bits<Bits16>(from), Bits32) << 16;
  return reinterpret_cast<Vector<float>>(bits);
}

inline Vector<float> load(const Half* from) {
#if STDEFORM_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(load_bits<__m256i>(from));
#elif STDEFORM_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(load_bits<__m128i>(from));
#else
  // As to_real(Half) in dtype.h, a vector at a time.
  const Bits32 bits = __builtin_convertvector(load_bits<Bits16>(from), Bits32);
  const Bits32 magnitude = (bits & 0x7fff) << 13;
  const Vector<float> finite = reinterpret_cast<Vector<float>>(magnitude) * 0x1p112f;
  const Bits32 is_special = reinterpret_cast<Bits32>((bits & 0x7c00) == 0x7c00);
  const Bits32 result = (is_special & (magnitude | 0x7f800000u)) |
                        (~is_special & reinterpret_cast<Bits32>(finite)) | (bits & 0x8000) << 16;
  return reinterpret_cast<Vector<float>>(result);
#endif
}

template <class Real>
inline void store(Real* to, Vector<Real> v) {
  std::memcpy(to, &v, sizeof v);
}

inline void store(Half* to, Vector<float> v) {
#if STDEFORM_VECTOR_BYTES == 64
  const __m256i bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(to, &bits, sizeof bits);
#elif STDEFORM_VECTOR_BYTES == 32
  const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &bits, sizeof bits);
#else
  for (int i = 0; i < kLanes<float>; ++i) from_real(v[i], to[i]);
#endif
}

inline void store(BFloat16* to, Vector<float> v) {
  const Bits32 bits = reinterpret_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits32 is_nan = reinterpret_cast<Bits32>(v != v);
  const Bits16 result =
      __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Bits16);
  std::memcpy(to, &result, sizeof result);
}

// Rows of `n` channels between a storage type and the compute type.
template <class T, class Real>
inline void load_row(const T* from, int64_t n, Real* to) {
  int64_t i = 0;
  for (; i + kLanes<Real> <= n; i += kLanes<Real>) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_real(from[i]);
}
template <class Real, class T>
inline void store_row(const Real* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + kLanes<Real> <= n; i += kLanes<Real>) store(to + i, load(from + i));
  for (; i < n; ++i) from_real(from[i], to[i]);
}

// Adding up the lanes of several vectors at once. A vector holds segments of `length` lanes that
// belong to one sum each; one fold halves the segments of `a` and `b` and joins them, a's first.
template <int W, int length, bool second>
constexpr int fold_lane(int lane) {
  const int half = length / 2;
  const int within = lane % (W / 2);
  return lane / (W / 2) * W + within / half * length + within % half + (second ? half : 0);
}
template <int length, bool second, class V, int... lane>
inline V pick(V a, V b, std::integer_sequence<int, lane...>) {
  constexpr int W = int(sizeof...(lane));
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, fold_lane<W, length, second>(lane)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Mask{fold_lane<W, length, second>(lane)...});
#endif
}
template <int length, class V>
inline V fold(V a, V b) {
  constexpr int W = int(sizeof(V) / sizeof(a[0]));
  using Lanes = std::make_integer_sequence<int, W>;
  return pick<length, false>(a, b, Lanes{}) + pick<length, true>(a, b, Lanes{});
}

// Writes the lane sums of `v[0..count)` to `to[0..count)`; may write up to a vector's width.
template <class Real, int count, int length = kLanes<Real>>
inline void store_lane_sums(const Vector<Real>* v, Real* to) {
  if constexpr (length == 1) {
    for (int i = 0; i < count; ++i) store(to + i * kLanes<Real>, v[i]);
  } else if constexpr (count == 1) {
    const Vector<Real> folded = fold<length>(v[0], v[0]);
    store_lane_sums<Real, 1, length / 2>(&folded, to);
  } else {
    Vector<Real> folded[count / 2];
    for (int i = 0; i < count / 2; ++i) folded[i] = fold<length>(v[2 * i], v[2 * i + 1]);
    store_lane_sums<Real, count / 2, length / 2>(folded, to);
  }
}

}  // namespace
}  // namespace stdeform
