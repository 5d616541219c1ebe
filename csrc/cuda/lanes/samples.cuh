// From what the caller passes for one sample to the corners it reads and how much of each.
//
// Reading and describing a sample is the work of one lane; what it finds goes through shared memory
// to the lanes that hold the row's channels.
#pragma once

#include <cmath>

#include "core/sampling.h"
#include "cuda/lanes/layout.cuh"
#include "cuda/lanes/vec.cuh"
#include "cuda/params.h"

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
  Real weight[kCount];  // interpolation weight times the sample's; zero where no cell is

  __device__ void cells(uint32_t (&of)[kCount]) const {
    of[0] = cell;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < (1 << n); ++c) of[c + (1 << n)] = of[c] + to_next[n];
    }
  }
};

// What the samples of one row, (b, q, m), share: where its inputs lie, its softmax, and what turns
// positions into pixel coordinates, pixel = position * scale + shift:
//   locations  location * size - 0.5
//   points     offset + (reference * size - 0.5)
//   boxes      offset * (box * size / 2K) + (centre * size - 0.5)
template <class T, int N>
struct alignas(16) SampledRow {
  using Real = Compute<T>;

  // The row, before its first level.
  __device__ __forceinline__ void start(const KernelParams& params, int b, int q, int m) {
    positions = of_query(params.positions, b, q) + uint32_t(m) * params.positions.stride[2];
    scores = of_query(params.scores, b, q) + uint32_t(m) * params.scores.stride[2];
    reference = of_query(params.reference, b, q);
    largest = 0, softmax_scale = 1;
  }

  // Goes on by `steps` levels, to level l; back, if they are negative.
  __device__ __forceinline__ void go_to_level(const KernelParams& params, int l, int steps) {
    const auto step = uint64_t(int64_t(steps));
    positions += step * params.positions.stride[3];
    scores += step * params.scores.stride[3];
    reference += step * params.reference.stride[2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const Real size = params.size[l][n];
      pixel_scale[n] = size;
      pixel_shift[n] = -Real(0.5);
      if (!params.from_offsets) continue;
      pixel_shift[n] = std::fma(reference_number(params, n), size, -Real(0.5));
      pixel_scale[n] = 1;
    }
    if (!params.problem.boxes) return;
    const Real half_point = Real(0.5) / Real(params.K);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      pixel_scale[n] = reference_number(params, N + n) * Real(params.size[l][n]) * half_point;
    }
  }

  // Where the scores of level 0 are, from the last level on.
  __device__ __forceinline__ const unsigned char* first_scores(const KernelParams& params) const {
    return scores - uint32_t(params.L - 1) * params.scores.stride[3];
  }

  // Coordinate n of sample k of the level as it was passed, a location or an offset.
  __device__ __forceinline__ Real position(const KernelParams& params, int k, int n) const {
    const uint64_t* s = params.positions.stride;
    return read<T>(params.positions, positions + uint32_t(k) * s[4] + uint32_t(n) * s[5]);
  }
  // Rounded once, as written: two kernels that ask for a pixel find the same one to the last bit,
  // whatever their compiler fuses.
  __device__ __forceinline__ void read_pixels(const KernelParams& params, int k,
                                              Real (&pixel)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      pixel[n] = std::fma(position(params, k, n), pixel_scale[n], pixel_shift[n]);
    }
  }

  __device__ __forceinline__ Real score(const KernelParams& params, int k) const {
    return read<T>(params.scores, scores + uint32_t(k) * params.scores.stride[4]);
  }
  // The attention weight of sample k: its score or, where scores are logits, its softmax.
  __device__ __forceinline__ Real attention(const KernelParams& params, int k) const {
    return params.from_offsets ? exponential(params, k) * softmax_scale : score(params, k);
  }
  // The same before it is divided by the softmax's sum.
  __device__ __forceinline__ Real undivided(const KernelParams& params, int k) const {
    return params.from_offsets ? exponential(params, k) : score(params, k);
  }

  const unsigned char *positions, *scores, *reference;  // of the level
  Real largest, softmax_scale;
  Real pixel_scale[N], pixel_shift[N];  // of the level

 private:
  __device__ static const unsigned char* of_query(const Numbers& array, int b, int q) {
    return array.data + uint32_t(b) * array.stride[0] + uint32_t(q) * array.stride[1];
  }
  __device__ __forceinline__ Real exponential(const KernelParams& params, int k) const {
    return std::exp(score(params, k) - largest);
  }
  __device__ __forceinline__ Real reference_number(const KernelParams& params, int n) const {
    return read<T>(params.reference, reference + uint32_t(n) * params.reference.stride[3]);
  }
};

// One sample as one lane holds it.
template <class Real, int N>
struct Sample {
  AxisSample<Real, IntOf<Real>> axes[N];
  Real attention;  // in the forward not yet divided by the softmax's sum
};

// A sample of level l at `pixel`; `inside` says that it reads something.
template <class Real, int N>
__device__ __forceinline__ Sample<Real, N> sample_at(const KernelParams& params, const Real* pixel,
                                                     Real attention, int l, bool inside = false) {
  Sample<Real, N> sample;
  sample.attention = attention;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int size = params.size[l][n];
    sample.axes[n] = sample_axis(pixel[n], Real(size), IntOf<Real>(size), inside);
  }
  return sample;
}

template <class Real, int N>
__device__ __forceinline__ Corners<Real, N> find_corners(const KernelParams& params,
                                                         const Sample<Real, N>& sample, int l) {
  Corners<Real, N> corners;
  bool reads = true;
  uint32_t stride = 1;
  corners.cell = 0;
  corners.weight[0] = sample.attention;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto& axis = sample.axes[n];
    reads &= axis.has_any;
    corners.cell += uint32_t(axis.low) * stride;
    corners.to_next[n] = axis.has_low && axis.has_high ? stride : 0;
    stride *= uint32_t(params.size[l][n]);
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

  // `combine` of the numbers of all lanes of a row, on the first of them. All lanes of the warp
  // call this and the next one.
  template <class Real, class F>
  __device__ __forceinline__ Real reduce_to_first(Real mine, F combine) const {
    return reduce_first<points>(mine, combine);
  }
  // The same on each of them.
  template <class Real, class F>
  __device__ __forceinline__ Real reduce(Real mine, F combine) const {
    return __shfl_sync(~0u, reduce_to_first(mine, combine), row * points);
  }

  int row, point;
  bool in_use;

 private:
  // Of the first n lanes of a row.
  template <int n, class Real, class F>
  __device__ __forceinline__ static Real reduce_first(Real mine, F combine) {
    if constexpr (n % 2 == 0) {
      return reduce_first<n / 2>(combine(mine, __shfl_down_sync(~0u, mine, n / 2)), combine);
    } else {
      Real all = mine;
#pragma unroll
      for (int i = 1; i < n; ++i) all = combine(all, __shfl_down_sync(~0u, mine, i));
      return all;
    }
  }
};

// Calls visit(score, l, k) for the scores of the lane's row that it reads; they start at `scores`.
template <class T, class Lane, class F>
__device__ __forceinline__ void for_each_score(const KernelParams& params, const Lane& lane,
                                               const unsigned char* scores, F visit) {
  const uint64_t step = Lane::kPoints * params.scores.stride[4];
  const unsigned char* level = scores + uint32_t(lane.point) * params.scores.stride[4];
  for (int l = 0; l < params.L; ++l, level += params.scores.stride[3]) {
    const unsigned char* at = level;
    for (int k = lane.point; k < params.K; k += Lane::kPoints, at += step) {
      visit(read<T>(params.scores, at), l, k);
    }
  }
}

// The largest logit of the lane's row, on the row's first lane. All lanes of the warp call this and
// the next one; `present` says whether the lane has a row. A NaN logit makes its whole row NaN, as
// it does in PyTorch: here it is lost in the maximum, and returns with the sum.
template <class T, int N, class Lane>
__device__ __forceinline__ Compute<T> find_largest(const KernelParams& params, const Lane& lane,
                                                   bool present, const SampledRow<T, N>& row) {
  using Real = Compute<T>;
  const auto larger = [](Real a, Real b) { return std::fmax(a, b); };
  Real largest = -Real(INFINITY);
  if (present) {
    for_each_score<T>(params, lane, row.scores,
                      [&](Real x, int, int) { largest = larger(largest, x); });
  }
  return lane.reduce_to_first(largest, larger);
}

// Fills in the softmax of the lane's row.
template <class T, int N, class Lane>
__device__ __forceinline__ void find_softmax(const KernelParams& params, const Lane& lane,
                                             bool present, SampledRow<T, N>& row) {
  using Real = Compute<T>;
  row.largest =
      __shfl_sync(~0u, find_largest(params, lane, present, row), lane.row * Lane::kPoints);
  Real sum = 0;
  if (present) {
    for_each_score<T>(params, lane, row.scores,
                      [&](Real x, int, int) { sum += std::exp(x - row.largest); });
  }
  row.softmax_scale = Real(1) / lane.reduce(sum, [](Real a, Real b) { return a + b; });
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
