// Linear interpolation along one axis: which two cells a coordinate lies between, and how much
// of each it reads. Shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define STDEFORM_INLINE __host__ __device__ __forceinline__
#else
#define STDEFORM_INLINE inline __attribute__((always_inline))
#endif

namespace stdeform {
namespace {

// Cells `low` and `low + 1`, clamped into the axis so that their addresses are always valid, with
// weight and slope (the weight's derivative by the coordinate) zero where the cell does not exist.
template <class Real>
struct AxisSample {
  int32_t low, high;
  Real low_weight, high_weight;
  Real low_slope, high_slope;
  bool has_low, has_high;
};

// `pixel` = location * size - 0.5, so that cell i has its centre at i. A coordinate at which no
// cell exists, NaN and infinity among them, reads nothing.
template <class Real>
STDEFORM_INLINE AxisSample<Real> sample_axis(Real pixel, int32_t size) {
  const bool near = pixel >= Real(-1) && pixel < Real(size);
  const Real p = near ? pixel : Real(-2);
  const int32_t truncated = int32_t(p);
  const int32_t floor = truncated - (Real(truncated) > p ? 1 : 0);
  const Real fraction = p - Real(floor);
  AxisSample<Real> s;
  s.has_low = floor >= 0;
  s.has_high = floor + 1 >= 0 && floor + 1 < size;
  s.low = floor < 0 ? 0 : floor;
  s.high = floor + 1 < size ? (floor + 1 < 0 ? 0 : floor + 1) : size - 1;
  s.low_weight = s.has_low ? Real(1) - fraction : Real(0);
  s.high_weight = s.has_high ? fraction : Real(0);
  s.low_slope = s.has_low ? Real(-1) : Real(0);
  s.high_slope = s.has_high ? Real(1) : Real(0);
  return s;
}

}  // namespace
}  // namespace stdeform
