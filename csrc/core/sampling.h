// The arithmetic of one sample: the two cells around a coordinate on each axis, their weights,
// and linear interpolation. Shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace stdeform {
namespace {

STDEFORM_INLINE int32_t truncate(float x) { return int32_t(x); }
STDEFORM_INLINE int64_t truncate(double x) { return int64_t(x); }
STDEFORM_INLINE float to_float(int32_t x) { return float(x); }
STDEFORM_INLINE double to_float(int64_t x) { return double(x); }

// cell = floor(p), fraction = p - cell.
template <class Real, class Int>
STDEFORM_INLINE void split(Real p, Int& cell, Real& fraction) {
  const Int toward_zero = truncate(p);
  cell = to_float(toward_zero) > p ? toward_zero - 1 : toward_zero;
  fraction = p - to_float(cell);
}
#ifdef __CUDA_ARCH__
// The same in fewer instructions.
__device__ __forceinline__ void split(float p, int32_t& cell, float& fraction) {
  const float before = floorf(p);
  cell = int32_t(before);
  fraction = p - before;
}
#endif

// The cells `low` and `high` = `low` + 1 around a coordinate, with their weights and slopes (the
// derivatives of the weights by the coordinate). A cell outside the volume has weight and slope
// zero, and the index of the other cell, or 0 if both are outside, so that every index is valid.
template <class Real, class Int>
struct AxisSample {
  Int low, high;
  Real low_weight, high_weight;
  Real low_slope, high_slope;
  using Mask = decltype(Int() >= Int());
  Mask has_low, has_high, has_any;  // whether the cell is inside, or either of them
};

// `pixel` = location * size - 0.5: the centre of cell i is at i. A coordinate with neither cell
// inside reads nothing; that includes NaN and infinity. `is_inside` promises that every coordinate
// has one.
//
// Real and Int are numbers, or vectors with the same number of lanes; truncate and to_float convert
// between them.
template <class Real, class Int>
STDEFORM_INLINE AxisSample<Real, Int> sample_axis(Real pixel, Real size, Int cells,
                                                  bool is_inside = false) {
  const Real zero = {}, one = zero + 1;
  const Int none = {};
  using Mask = typename AxisSample<Real, Int>::Mask;
  const auto has_any = is_inside ? Mask(none >= none) : Mask((pixel >= -one) & (pixel < size));
  const Real p = is_inside ? pixel : has_any ? pixel : zero - 2;
  Int low;
  Real fraction;
  split(p, low, fraction);
  const Int high = low + 1;
  const auto has_low = Mask(p >= zero);
  const Int inside_low = has_low ? low : none;
  const auto has_high = Mask((high >= none) & (high < cells));
  return {
      inside_low,
      has_high ? high : inside_low,
      has_low ? one - fraction : zero,
      has_high ? fraction : zero,
      has_low ? -one : zero,
      has_high ? one : zero,
      has_low,
      has_high,
      has_any,
  };
}

// Interpolates the 2^N numbers at the corners of a sample (bit n of a corner: the higher cell on
// axis n), in place: at[0] becomes the interpolated number, slope[n] its derivative by the pixel
// coordinate of axis n. Each axis halves the number of values that are left.
template <int N, class Real, class Axes>
STDEFORM_INLINE void interpolate(const Axes& axes, Real* at, Real* slope) {
  constexpr int kHalf = 1 << (N - 1);
  Real slopes[N][kHalf];
  STDEFORM_UNROLL
  for (int n = 0; n < N; ++n) {
    const auto& axis = axes[n];
    STDEFORM_UNROLL
    for (int c = 0; c < (kHalf >> n); ++c) {
      STDEFORM_UNROLL
      for (int done = 0; done < n; ++done) {
        slopes[done][c] =
            axis.low_weight * slopes[done][2 * c] + axis.high_weight * slopes[done][2 * c + 1];
      }
      slopes[n][c] = axis.low_slope * at[2 * c] + axis.high_slope * at[2 * c + 1];
      at[c] = axis.low_weight * at[2 * c] + axis.high_weight * at[2 * c + 1];
    }
  }
  STDEFORM_UNROLL
  for (int n = 0; n < N; ++n) slope[n] = slopes[n][0];
}

}  // namespace
}  // namespace stdeform
