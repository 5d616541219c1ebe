// From what the caller passes for one sample to the corners it reads and how much of each.
//
// Reading and describing a sample is the work of one lane; what it finds goes through shared memory
// to the lanes that hold the row's channels.
#pragma once

#include <cmath>

#include "../sampling.h"
#include "call.h"
#include "elements.cuh"
#include "layout.cuh"

namespace stdeform::cuda {

template <class Real>
using IntOf = decltype(truncate(Real()));

// The corners of one sample. Bit n of a corner: the higher cell along axis n.
template <class Real, int N>
struct alignas(16) Corners {
  static constexpr int kCount = 1 << N;
  static constexpr uint32_t kNone = 0xffffffff;

  uint32_t cell;        // the lowest one, counted in the level; kNone if no corner exists
  uint32_t to_next[N];  // cells from the lower to the higher one along each axis
  Real weight[kCount];  // interpolation weight times attention; zero where no cell is

  __device__ void cells(uint32_t (&of)[kCount]) const {
    of[0] = cell;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < (1 << n); ++c) of[c + (1 << n)] = of[c] + to_next[n];
    }
  }
};

// What the samples of one row, (b, q, m), share: where its inputs lie, and its softmax.
template <class T>
struct SampledRow {
  __device__ SampledRow(const Problem& p, int b, int q, int m)
      : positions(element<T>(p.positions, offset(p.positions, b, q) + m * p.positions.stride[2])),
        scores(element<T>(p.scores, offset(p.scores, b, q) + m * p.scores.stride[2])),
        reference(element<T>(p.reference, offset(p.reference, b, q))) {}

  const void *positions, *scores, *reference;
  Compute<T> largest, scale;  // of the softmax

 private:
  __device__ static int64_t offset(const Array& array, int b, int q) {
    return b * array.stride[0] + q * array.stride[1];
  }
};

template <class T>
__device__ __forceinline__ Compute<T> score(const Problem& p, const SampledRow<T>& row, int l,
                                            int k) {
  return read<T>(p.scores, row.scores, l * p.scores.stride[3] + k * p.scores.stride[4]);
}

// Attention weight of a score: the score itself, or its softmax where scores are logits.
template <class T>
__device__ __forceinline__ Compute<T> attention(const Problem& p, const SampledRow<T>& row,
                                                Compute<T> score) {
  return p.reference.data ? std::exp(score - row.largest) * row.scale : score;
}

// One sample as one lane holds it.
template <class Real, int N>
struct Sample {
  AxisSample<Real, IntOf<Real>> axes[N];
  Real attention;
};

// Coordinate of sample (l, k) along axis n as it was passed, a location or an offset.
template <class T>
__device__ __forceinline__ Compute<T> position(const Problem& p, const SampledRow<T>& row, int l,
                                               int k, int n) {
  const int64_t* s = p.positions.stride;
  return read<T>(p.positions, row.positions, l * s[3] + k * s[4] + n * s[5]);
}

// Number n of the row's reference point on level l.
template <class T>
__device__ __forceinline__ Compute<T> reference(const Problem& p, const SampledRow<T>& row, int l,
                                                int n) {
  const int64_t* s = p.reference.stride;
  return read<T>(p.reference, row.reference, l * s[2] + n * s[3]);
}

// What turns positions into pixel coordinates, pixel = position * scale + shift:
//   locations  location * size - 0.5
//   points     offset + (reference * size - 0.5)
//   boxes      offset * (box * size / 2K) + (centre * size - 0.5)
template <class T, int N>
__device__ __forceinline__ Compute<T> pixel_scale(const Call& call, const SampledRow<T>& row, int l,
                                                  int n) {
  using Real = Compute<T>;
  const Problem& p = call.problem;
  const Real size = call.size[l][n];
  if (!p.reference.data) return size;
  if (!p.boxes) return Real(1);
  return reference(p, row, l, N + n) * size * (Real(0.5) / Real(call.K));
}
template <class T>
__device__ __forceinline__ Compute<T> pixel_shift(const Call& call, const SampledRow<T>& row, int l,
                                                  int n) {
  using Real = Compute<T>;
  if (!call.problem.reference.data) return Real(-0.5);
  return reference(call.problem, row, l, n) * Real(call.size[l][n]) - Real(0.5);
}

template <class T, int N>
__device__ __forceinline__ void read_pixels(const Call& call, const SampledRow<T>& row, int l,
                                            int k, Compute<T> (&pixel)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    pixel[n] = position(call.problem, row, l, k, n) * pixel_scale<T, N>(call, row, l, n) +
               pixel_shift(call, row, l, n);
  }
}

// A sample of level l at `pixel`.
template <class Real, int N>
__device__ __forceinline__ Sample<Real, N> sample_at(const Call& call, const Real (&pixel)[N],
                                                     Real attention, int l) {
  Sample<Real, N> sample;
  sample.attention = attention;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int size = call.size[l][n];
    sample.axes[n] = sample_axis(pixel[n], Real(size), IntOf<Real>(size));
  }
  return sample;
}

template <class T, int N>
__device__ Sample<Compute<T>, N> read_sample(const Call& call, const SampledRow<T>& row, int l,
                                             int k) {
  const Problem& p = call.problem;
  Compute<T> pixel[N];
  read_pixels<T, N>(call, row, l, k, pixel);
  return sample_at<Compute<T>, N>(call, pixel, attention<T>(p, row, score<T>(p, row, l, k)), l);
}

template <class Real, int N>
__device__ Corners<Real, N> find_corners(const Call& call, const Sample<Real, N>& sample, int l) {
  Corners<Real, N> corners;
  bool reads = true;
  uint32_t stride = 1;
  corners.cell = 0;
  corners.weight[0] = sample.attention;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto& axis = sample.axes[n];
    reads &= axis.has_low || axis.has_high;
    corners.cell += uint32_t(axis.low) * stride;
    corners.to_next[n] = uint32_t(axis.high - axis.low) * stride;
    stride *= uint32_t(call.size[l][n]);
#pragma unroll
    for (int c = 0; c < (1 << n); ++c) {
      corners.weight[c + (1 << n)] = corners.weight[c] * axis.high_weight;
      corners.weight[c] *= axis.low_weight;
    }
  }
  if (!reads) corners.cell = Corners<Real, N>::kNone;
  return corners;
}

// Which sample a lane reads: `points` lanes, one per point, for each of `rows` rows of the warp.
template <int rows, int points>
struct SamplingLane {
  static_assert(rows * points <= kWarpSize, "a lane reads one sample at a time");
  static constexpr int kPoints = points;

  __device__ explicit SamplingLane(int lane)
      : row(lane / points < rows ? lane / points : rows - 1),
        point(lane % points),
        in_use(lane < rows * points) {}

  // `combine` of the numbers of all lanes of a row, the same on each of them. All lanes of the warp
  // call it.
  template <class Real, class F>
  __device__ Real reduce(Real mine, F combine) const {
    if constexpr ((points & (points - 1)) == 0) {
#pragma unroll
      for (int i = 1; i < points; i *= 2) {
        mine = combine(mine, __shfl_xor_sync(~0u, mine, i));
      }
      return mine;
    } else {
      Real all = __shfl_sync(~0u, mine, row * points);
#pragma unroll
      for (int i = 1; i < points; ++i) {
        all = combine(all, __shfl_sync(~0u, mine, row * points + i));
      }
      return all;
    }
  }

  int row, point;
  bool in_use;
};

// Fills in the softmax of the lane's row. All lanes of the warp call it; `present` says whether the
// lane has a row.
template <class T, class Lane>
__device__ void find_softmax(const Call& call, const Lane& lane, bool present, SampledRow<T>& row) {
  using Real = Compute<T>;
  const auto for_each = [&](auto visit) {
    if (!present) return;
    for (int l = 0; l < call.L; ++l) {
      for (int k = lane.point; k < call.K; k += Lane::kPoints) {
        visit(score<T>(call.problem, row, l, k));
      }
    }
  };
  // A NaN logit makes its whole row NaN, as it does in PyTorch: here it is lost in the maximum, and
  // returns with the sum.
  Real largest = -Real(INFINITY), sum = 0;
  for_each([&](Real x) { largest = x > largest ? x : largest; });
  row.largest = lane.reduce(largest, [](Real a, Real b) { return a > b ? a : b; });
  for_each([&](Real x) { sum += std::exp(x - row.largest); });
  row.scale = Real(1) / lane.reduce(sum, [](Real a, Real b) { return a + b; });
}

// The corners of the samples that a warp works on together: [rows][points], in shared memory. Rows
// are an odd number of 16 bytes apart, so that lanes of different rows read different banks.
template <class Real, int N, int rows, int points>
class CornerTable {
  static constexpr int kUnits = int(sizeof(Corners<Real, N>)) / 16;
  static constexpr int kPitch = points * kUnits | 1;

 public:
  static constexpr int kSize = rows * kPitch;  // of memory, in uint4

  __device__ explicit CornerTable(uint4* memory) : memory_(memory) {}

  __device__ Corners<Real, N>& at(int row, int point) const {
    return *reinterpret_cast<Corners<Real, N>*>(memory_ + row * kPitch + point * kUnits);
  }

 private:
  uint4* memory_;
};

}  // namespace stdeform::cuda
