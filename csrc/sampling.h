// Linear interpolation along one axis: which two cells a coordinate lies between, and how much
// of each it reads. Shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "inline.h"

namespace stdeform {
namespace {

STDEFORM_INLINE int32_t truncate(float x) { return int32_t(x); }
STDEFORM_INLINE int64_t truncate(double x) { return int64_t(x); }
STDEFORM_INLINE float to_float(int32_t x) { return float(x); }
STDEFORM_INLINE double to_float(int64_t x) { return double(x); }

// Cells `low` and `high` = `low` + 1, with weight and slope (the weight's derivative by the
// coordinate) zero where the cell does not exist. Such a cell's number is that of the other one, or
// 0 where neither exists, so that its address is always valid.
template <class Real, class Int>
struct AxisSample {
  Int low, high;
  Real low_weight, high_weight;
  Real low_slope, high_slope;
  Int has_low, has_high;  // all bits set where the cell exists, none where it does not
};

// `pixel` = location * size - 0.5, so that cell i has its centre at i. A coordinate at which no
// cell exists, NaN and infinity among them, reads nothing.
//
// Real and Int are numbers, or vectors of as many of them; truncate and to_float convert between
// the two.
template <class Real, class Int>
STDEFORM_INLINE AxisSample<Real, Int> sample_axis(Real pixel, Real size, Int cells) {
  const Real zero = {}, one = zero + 1;
  const Int none = {};
  const Real p = (pixel >= -one) & (pixel < size) ? pixel : zero - 2;
  const Int toward_zero = truncate(p);
  const Int low = to_float(toward_zero) > p ? toward_zero - 1 : toward_zero;
  const Int high = low + 1;
  const Real fraction = p - to_float(low);
  const auto has_low = low >= none;
  const Int existing_low = has_low ? low : none;
  const auto has_high = (high >= none) & (high < cells);
  return {
      existing_low,
      has_high ? high : existing_low,
      has_low ? one - fraction : zero,
      has_high ? fraction : zero,
      has_low ? -one : zero,
      has_high ? one : zero,
      has_low ? ~none : none,
      has_high ? ~none : none,
  };
}

// Interpolates the 2^N numbers at a sample's corners (bit n of a corner: the higher cell along axis
// n), in place: `at[0]` becomes what the sample reads, `slope[n]` its derivative by the pixel
// coordinate of axis n. Axis after axis; what is left after x are 2^(N-1) numbers, and so on.
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
