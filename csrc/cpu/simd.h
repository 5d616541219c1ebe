// Vectors of one instruction set: loads and stores for every element type, shuffles, sums of lanes.
//
// isa_*.cpp include this with STDEFORM_VECTOR_BYTES set. Everything has internal linkage; dtype.h
// says why.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/dtype.h"
#include "core/macros.h"

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

// Integers of the same size, so that a vector of them has the same number of lanes.
template <class Real>
using IntOf = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
template <class Real>
using IntVector = Vector<IntOf<Real>>;

STDEFORM_INLINE IntVector<float> truncate(Vector<float> x) {
  return __builtin_convertvector(x, IntVector<float>);
}
STDEFORM_INLINE IntVector<double> truncate(Vector<double> x) {
  return __builtin_convertvector(x, IntVector<double>);
}
STDEFORM_INLINE Vector<float> to_float(IntVector<float> x) {
  return __builtin_convertvector(x, Vector<float>);
}
STDEFORM_INLINE Vector<double> to_float(IntVector<double> x) {
  return __builtin_convertvector(x, Vector<double>);
}

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class To>
STDEFORM_INLINE To load_bits(const void* from) {
  To to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

STDEFORM_INLINE Vector<double> load(const double* from) { return load_bits<Vector<double>>(from); }
STDEFORM_INLINE Vector<float> load(const float* from) { return load_bits<Vector<float>>(from); }
STDEFORM_INLINE Vector<int32_t> load(const int32_t* from) {
  return load_bits<Vector<int32_t>>(from);
}
STDEFORM_INLINE Vector<int64_t> load(const int64_t* from) {
  return load_bits<Vector<int64_t>>(from);
}

// Prefetches n numbers that will be read, or written, soon.
template <bool to_write, class T>
STDEFORM_INLINE void prefetch(const T* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i, to_write);
}

// Writes a vector past the cache, which otherwise reads its line first: for arrays of which little
// is used soon. After all of them, `fence`.
STDEFORM_INLINE void stream(float* to, Vector<float> v) {
#if STDEFORM_VECTOR_BYTES == 64
  _mm512_stream_ps(to, v);
#elif STDEFORM_VECTOR_BYTES == 32
  _mm256_stream_ps(to, v);
#elif defined(__SSE2__)
  _mm_stream_ps(to, v);
#else
  std::memcpy(to, &v, sizeof v);
#endif
}
STDEFORM_INLINE void fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Between 16 and 32 bits, GCC for ARM takes vectors apart unless it is given the instruction.
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

// Zero extension. For __builtin_convertvector, GCC emits three instructions instead of one.
STDEFORM_INLINE Bits32 widen(const void* from) {
#if STDEFORM_VECTOR_BYTES == 64
  return reinterpret_cast<Bits32>(_mm512_cvtepu16_epi32(load_bits<__m256i>(from)));
#elif STDEFORM_VECTOR_BYTES == 32
  return reinterpret_cast<Bits32>(_mm256_cvtepu16_epi32(load_bits<__m128i>(from)));
#else
  return __builtin_convertvector(load_bits<Bits16>(from), Bits32);
#endif
}

STDEFORM_INLINE Vector<float> load(const BFloat16* from) {
#if defined(__aarch64__)
  return reinterpret_cast<Vector<float>>(vshll_n_u16(load_bits<uint16x4_t>(from), 16));
#else
  return reinterpret_cast<Vector<float>>(widen(from) << 16);
#endif
}

STDEFORM_INLINE Vector<float> load(const Half* from) {
#if STDEFORM_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(load_bits<__m256i>(from));
#elif STDEFORM_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(load_bits<__m128i>(from));
#elif defined(__aarch64__)
  return reinterpret_cast<Vector<float>>(vcvt_f32_f16(load_bits<float16x4_t>(from)));
#else
  // Like to_real(Half) in dtype.h, for a vector.
  const Bits32 bits = widen(from);
  const Bits32 magnitude = (bits & 0x7fff) << 13;
  const Vector<float> finite = reinterpret_cast<Vector<float>>(magnitude) * 0x1p112f;
  const Bits32 is_special = reinterpret_cast<Bits32>((bits & 0x7c00) == 0x7c00);
  const Bits32 result = (is_special & (magnitude | 0x7f800000u)) |
                        (~is_special & reinterpret_cast<Bits32>(finite)) | (bits & 0x8000) << 16;
  return reinterpret_cast<Vector<float>>(result);
#endif
}

// The bfloat16 numbers of one channel in two neighbouring cells: the first in the low half.
struct BFloat16Pair {
  uint32_t bits;
};

// A vector of channels in each of two rows.
template <class V>
struct VectorPair {
  V first, second;
};
template <class T>
STDEFORM_INLINE auto load_pair(const T* first, const T* second) {
  return VectorPair<Vector<Compute<T>>>{load(first), load(second)};
}
STDEFORM_INLINE VectorPair<Vector<float>> load_pair(const BFloat16Pair* pairs,
                                                    const BFloat16Pair*) {
  auto bits = load_bits<Bits32>(pairs);
#if STDEFORM_VECTOR_BYTES >= 32
  asm("" : "+v"(bits));  // loaded once, not by each of its two uses
#endif
  return {reinterpret_cast<Vector<float>>(bits << 16),
          reinterpret_cast<Vector<float>>(bits & 0xffff0000u)};
}

// Not one template: for the storage types, of which there are no vectors, it would not compile.
STDEFORM_INLINE void store(double* to, Vector<double> v) { std::memcpy(to, &v, sizeof v); }
STDEFORM_INLINE void store(float* to, Vector<float> v) { std::memcpy(to, &v, sizeof v); }
STDEFORM_INLINE void store(int32_t* to, Vector<int32_t> v) { std::memcpy(to, &v, sizeof v); }
STDEFORM_INLINE void store(int64_t* to, Vector<int64_t> v) { std::memcpy(to, &v, sizeof v); }

STDEFORM_INLINE void store(Half* to, Vector<float> v) {
#if STDEFORM_VECTOR_BYTES == 64
  const __m256i bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(to, &bits, sizeof bits);
#elif STDEFORM_VECTOR_BYTES == 32
  const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &bits, sizeof bits);
#elif defined(__aarch64__)
  const float16x4_t half = vcvt_f16_f32(reinterpret_cast<float32x4_t>(v));
  std::memcpy(to, &half, sizeof half);
#else
  for (int i = 0; i < kLanes<float>; ++i) from_real(v[i], to[i]);
#endif
}

STDEFORM_INLINE void store(BFloat16* to, Vector<float> v) {
  const Bits32 bits = reinterpret_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits32 is_nan = reinterpret_cast<Bits32>(v != v);
  const Bits32 result = (is_nan & 0x7fc0) | (~is_nan & rounded);
#if defined(__aarch64__)
  const uint16x4_t bits16 = vmovn_u32(reinterpret_cast<uint32x4_t>(result));
#else
  const Bits16 bits16 = __builtin_convertvector(result, Bits16);
#endif
  std::memcpy(to, &bits16, sizeof bits16);
}

// Writes first + lane for the first `count` lanes that are true, and returns how many those are.
// Writes up to a whole vector.
template <class Ints>
STDEFORM_INLINE int list_lanes(Ints is_true, int first, int count, int* to) {
  constexpr int W = int(sizeof(Ints) / sizeof(is_true[0]));
#if STDEFORM_VECTOR_BYTES == 64
  if constexpr (W == 16) {
    const auto lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto mask = __mmask16(_mm512_movepi32_mask(reinterpret_cast<__m512i>(is_true)) &
                                _cvtu32_mask16((uint32_t(1) << std::min(count, 16)) - 1));
    const __m512i listed =
        _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
    std::memcpy(to, &listed, sizeof listed);
    return __builtin_popcount(mask);
  }
#endif
  alignas(64) std::decay_t<decltype(is_true[0])> flags[W];
  store(flags, is_true);
  int listed = 0;
  for (int lane = 0; lane < std::min(count, W); ++lane) {
    to[listed] = first + lane;
    listed += int(flags[lane] & 1);
  }
  return listed;
}

// Both convert n numbers between a storage type and a compute type; vectorised if Real is the
// storage type's own compute type.
//
// Unrolled, as a processor predicts where a load instruction reads next from where it read before:
// called for records that are equally far apart, each instruction sees that one distance.
template <class T, class Real>
STDEFORM_INLINE void load_numbers(const T* from, int64_t n, Real* to) {
  constexpr int W = kLanes<Real>;
  int64_t i = 0;
  if constexpr (std::is_same_v<Compute<T>, Real>) {
    while (i + W <= n) {
#pragma GCC unroll 8
      for (int u = 0; u < 8; ++u) {
        if (i + W > n) break;
        store(to + i, load(from + i));
        i += W;
      }
    }
  }
  for (; i < n; ++i) to[i] = Real(to_real(from[i]));
}
template <class Real, class T>
STDEFORM_INLINE void store_numbers(const Real* from, int64_t n, T* to) {
  constexpr int W = kLanes<Real>;
  int64_t i = 0;
  if constexpr (std::is_same_v<Compute<T>, Real>) {
    while (i + W <= n) {
#pragma GCC unroll 8
      for (int u = 0; u < 8; ++u) {
        if (i + W > n) break;
        store(to + i, load(from + i));
        i += W;
      }
    }
  }
  for (; i < n; ++i) from_real(Compute<T>(from[i]), to[i]);
}

// n pairs; zeros for a null row.
STDEFORM_INLINE void store_pairs(const BFloat16* first, const BFloat16* second, int64_t n,
                                 BFloat16Pair* to) {
  constexpr int W = kLanes<float>;
  int64_t i = 0;
  while (i + W <= n) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) {
      if (i + W > n) break;
      const Bits32 low = first ? widen(first + i) : Bits32{};
      const Bits32 high = second ? widen(second + i) << 16 : Bits32{};
      const Bits32 bits = low | high;
      std::memcpy(to + i, &bits, sizeof bits);
      i += W;
    }
  }
  for (; i < n; ++i) {
    const uint32_t low = first ? first[i].bits : 0, high = second ? second[i].bits : 0;
    to[i].bits = low | high << 16;
  }
}

// Lane i of the result is lane Order::lane(W, i) of `a` followed by `b`, which have 2W lanes.
template <class Order, class V, int... i>
STDEFORM_INLINE V shuffle(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int W = int(sizeof...(i));
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Order::lane(W, i)...);
#else
  using Index = IntOf<std::decay_t<decltype(a[0])>>;
  return __builtin_shuffle(a, b, Vector<Index>{Index(Order::lane(W, i))...});
#endif
}
template <class Order, class V>
STDEFORM_INLINE V shuffle(V a, V b) {
  constexpr int W = int(sizeof(V) / sizeof(a[0]));
  return shuffle<Order>(a, b, std::make_integer_sequence<int, W>{});
}

// Sums the lanes of several vectors at once. A vector holds segments of `length` lanes, one sum per
// segment. A fold halves each segment of `a` and `b`, and returns the halves of a, then those of b.
template <int length, int half>  // half 0 or 1 of each segment
struct SegmentHalves {
  static constexpr int lane(int W, int i) {
    const int within = i % (W / 2);
    return i / (W / 2) * W + within / (length / 2) * length + within % (length / 2) +
           half * (length / 2);
  }
};
template <int length, class V>
STDEFORM_INLINE V fold(V a, V b) {
  return shuffle<SegmentHalves<length, 0>>(a, b) + shuffle<SegmentHalves<length, 1>>(a, b);
}

// Combines the lanes of a vector to one number, halving the vector in each step.
template <int length, class V, class F>
STDEFORM_INLINE auto reduce(V v, F combine) {
  if constexpr (length == 1) {
    return v[0];
  } else {
    return reduce<length / 2>(
        combine(shuffle<SegmentHalves<length, 0>>(v, v), shuffle<SegmentHalves<length, 1>>(v, v)),
        combine);
  }
}

// to[i] = sum of the lanes of v[i], for i < count. Writes whole vectors, so `to` needs padding.
template <class Real, int count, int length = kLanes<Real>>
STDEFORM_INLINE void store_lane_sums(const Vector<Real>* v, Real* to) {
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

// Deinterleaves W records of `count` numbers into one vector for each number of the record.
template <int step, int first>  // every step-th of the 2W lanes; past the end, any lane
struct EveryNth {
  static constexpr int lane(int W, int i) {
    return step * i + first < 2 * W ? step * i + first : 0;
  }
};
template <int first>  // the lanes that EveryNth<3, first> found, then every third of b
struct ThenEveryThird {
  static constexpr int lane(int W, int i) {
    return 3 * i + first < 2 * W ? i : W + 3 * i + first - 2 * W;
  }
};
template <int count, class Real>
STDEFORM_INLINE void deinterleave(const Real* records, Vector<Real>* parts) {
  for (int i = 0; i < count; ++i) parts[i] = load(records + i * kLanes<Real>);
  if constexpr (count == 3) {
    const Vector<Real> a = parts[0], b = parts[1], c = parts[2];
    parts[0] = shuffle<ThenEveryThird<0>>(shuffle<EveryNth<3, 0>>(a, b), c);
    parts[1] = shuffle<ThenEveryThird<1>>(shuffle<EveryNth<3, 1>>(a, b), c);
    parts[2] = shuffle<ThenEveryThird<2>>(shuffle<EveryNth<3, 2>>(a, b), c);
  } else {
    // Each round moves the lowest bit of a number's index to the top: even indices first, then odd.
    for (int left = count; left > 1; left /= 2) {
      Vector<Real> next[count];
      for (int i = 0; i < count / 2; ++i) {
        next[i] = shuffle<EveryNth<2, 0>>(parts[2 * i], parts[2 * i + 1]);
        next[i + count / 2] = shuffle<EveryNth<2, 1>>(parts[2 * i], parts[2 * i + 1]);
      }
      for (int i = 0; i < count; ++i) parts[i] = next[i];
    }
  }
}

// The way back: W records of `count` numbers.
template <int count,
          int part>  // lanes of the part-th vector of records, from the first two numbers
struct OfTwo {
  static constexpr int lane(int W, int i) {
    const int at = part * W + i;
    return at / count + (at % count == 1 ? W : 0);
  }
};
template <int part>  // the third number, where there is one
struct ThenTheThird {
  static constexpr int lane(int W, int i) {
    const int at = part * W + i;
    return at % 3 == 2 ? W + at / 3 : i;
  }
};
template <int count, class Real, int... part>
STDEFORM_INLINE void interleave(const Vector<Real>* parts, Real* records,
                                std::integer_sequence<int, part...>) {
  constexpr int W = kLanes<Real>;
  if constexpr (count == 3) {
    (store(records + part * W,
           shuffle<ThenTheThird<part>>(shuffle<OfTwo<3, part>>(parts[0], parts[1]), parts[2])),
     ...);
  } else {
    (store(records + part * W, shuffle<OfTwo<2, part>>(parts[0], parts[1])), ...);
  }
}
template <int count, class Real>
STDEFORM_INLINE void interleave(const Vector<Real>* parts, Real* records) {
  static_assert(count == 2 || count == 3, "records of 2 or 3 numbers");
  interleave<count>(parts, records, std::make_integer_sequence<int, count>{});
}

}  // namespace
}  // namespace stdeform
