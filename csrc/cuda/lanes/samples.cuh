// From the inputs of one sample to the corners that it reads, and the weight of each.
//
// One lane reads a sample and finds its corners; they go through shared memory to the lanes that
// hold the channels of the query-head.
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
  Real weight[kCount];  // interpolation weight times attention; zero where no cell exists

  __device__ void cells(uint32_t (&of)[kCount]) const {
    of[0] = cell;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < (1 << n); ++c) of[c + (1 << n)] = of[c] + to_next[n];
    }
  }
};

// What the P samples of one query-head (b, q, m) share: the addresses of its inputs, its
// softmax, and the map from positions to pixel coordinates, pixel = position * scale + shift:
//   locations  location * size - 0.5
//   points     offset + (reference * size - 0.5)
//   boxes      offset * (box * size / 2K) + (centre * size - 0.5)
template <class T, int N>
struct alignas(16) QueryHead {
  using Real = Compute<T>;

  // Before the first level.
  __device__ __forceinline__ void start(const KernelParams& params, int b, int q, int m) {
    positions = of_query(params.positions, b, q) + uint32_t(m) * params.positions.stride[2];
    scores = of_query(params.scores, b, q) + uint32_t(m) * params.scores.stride[2];
    reference = of_query(params.reference, b, q);
    max_logit = 0, softmax_scale = 1;
  }

  // Goes on by `steps` levels, to level l; back, if they are negative.
  __device__ __forceinline__ void go_to_level(const KernelParams& params, int l, int steps) {
    const auto points = uint64_t(int64_t(params.first_point[l] - params.first_point[l - steps]));
    positions += points * params.positions.stride[3];
    scores += points * params.scores.stride[3];
    reference += uint64_t(int64_t(steps)) * params.reference.stride[2];
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
    const Real half_point = Real(0.5) / Real(params.num_points(l));
#pragma unroll
    for (int n = 0; n < N; ++n) {
      pixel_scale[n] = reference_number(params, N + n) * Real(params.size[l][n]) * half_point;
    }
  }

  // The address of the scores of level 0, if this is at the last level.
  __device__ __forceinline__ const unsigned char* first_scores(const KernelParams& params) const {
    return scores - uint32_t(params.first_point[params.L - 1]) * params.scores.stride[3];
  }

  // Coordinate n of sample k of the level as it was passed, a location or an offset.
  __device__ __forceinline__ Real position(const KernelParams& params, int k, int n) const {
    const uint64_t* s = params.positions.stride;
    return read<T>(params.positions, positions + uint32_t(k) * s[3] + uint32_t(n) * s[4]);
  }
  // Rounded once, as written: two kernels that compute a pixel find the same one to the last bit,
  // whatever their compiler fuses.
  __device__ __forceinline__ void read_pixels(const KernelParams& params, int k,
                                              Real (&pixel)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      pixel[n] = std::fma(position(params, k, n), pixel_scale[n], pixel_shift[n]);
    }
  }

  __device__ __forceinline__ Real score(const KernelParams& params, int k) const {
    return read<T>(params.scores, scores + uint32_t(k) * params.scores.stride[3]);
  }
  // The attention weight of sample k: its score or, where scores are logits, its softmax.
  __device__ __forceinline__ Real attention(const KernelParams& params, int k) const {
    return params.from_offsets ? exponential(params, k) * softmax_scale : score(params, k);
  }
  // The same before the division by the sum of the softmax.
  __device__ __forceinline__ Real unnormalized(const KernelParams& params, int k) const {
    return params.from_offsets ? exponential(params, k) : score(params, k);
  }

  const unsigned char *positions, *scores, *reference;  // of the level
  Real max_logit, softmax_scale;                        // scale: 1 / sum of exponentials
  Real pixel_scale[N], pixel_shift[N];                  // of the level

 private:
  __device__ static const unsigned char* of_query(const Numbers& array, int b, int q) {
    return array.data + uint32_t(b) * array.stride[0] + uint32_t(q) * array.stride[1];
  }
  __device__ __forceinline__ Real exponential(const KernelParams& params, int k) const {
    return std::exp(score(params, k) - max_logit);
  }
  __device__ __forceinline__ Real reference_number(const KernelParams& params, int n) const {
    return read<T>(params.reference, reference + uint32_t(n) * params.reference.stride[3]);
  }
};

// One sample as one lane holds it.
template <class Real, int N>
struct Sample {
  AxisSample<Real, IntOf<Real>> axes[N];
  Real attention;  // in the forward not yet divided by the sum of the softmax
};

// A sample of level l at `pixel`; `inside` says that at least one of its corners exists.
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
  bool has_corner = true;
  uint32_t stride = 1;
  corners.cell = 0;
  corners.weight[0] = sample.attention;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto& axis = sample.axes[n];
    has_corner &= axis.has_any;
    corners.cell += uint32_t(axis.low) * stride;
    corners.to_next[n] = axis.has_low && axis.has_high ? stride : 0;
    stride *= uint32_t(params.size[l][n]);
#pragma unroll
    for (int c = 0; c < (1 << n); ++c) {
      corners.weight[c + (1 << n)] = corners.weight[c] * axis.high_weight;
      corners.weight[c] *= axis.low_weight;
    }
  }
  if (!has_corner) corners.cell = Corners<Real, N>::kNone;
  return corners;
}

// Which sample a lane reads: `points` lanes, one per point, for each of the warp's `query_heads`.
template <int query_heads, int points>
struct SamplingLane {
  static_assert(query_heads * points <= kWarpSize, "a lane reads one sample at a time");
  static constexpr int kPoints = points;

  __device__ explicit SamplingLane(int lane)
      : qh(lane / points < query_heads ? lane / points : query_heads - 1),
        point(lane % points),
        in_use(lane < query_heads * points) {}

  // `combine` of the numbers of all lanes of a query-head, on the first of them. All lanes of the
  // warp call this and the next one.
  template <class Real, class F>
  __device__ __forceinline__ Real reduce_to_first(Real number, F combine) const {
    return reduce_first<points>(number, combine);
  }
  // The same on each of them.
  template <class Real, class F>
  __device__ __forceinline__ Real reduce(Real number, F combine) const {
    return __shfl_sync(~0u, reduce_to_first(number, combine), qh * points);
  }

  int qh;  // the query-head, counted in the warp
  int point;
  bool in_use;

 private:
  // Of the first n lanes of a query-head.
  template <int n, class Real, class F>
  __device__ __forceinline__ static Real reduce_first(Real number, F combine) {
    if constexpr (n % 2 == 0) {
      return reduce_first<n / 2>(combine(number, __shfl_down_sync(~0u, number, n / 2)), combine);
    } else {
      Real all = number;
#pragma unroll
      for (int i = 1; i < n; ++i) all = combine(all, __shfl_down_sync(~0u, number, i));
      return all;
    }
  }
};

// Calls visit(score, l, k) for the lane's samples of its query-head; `scores` points to its scores.
template <class T, class Lane, class F>
__device__ __forceinline__ void for_each_score(const KernelParams& params, const Lane& lane,
                                               const unsigned char* scores, F visit) {
  const uint64_t stride = params.scores.stride[3], step = Lane::kPoints * stride;
  for (int l = 0; l < params.L; ++l) {
    const unsigned char* at = scores + uint32_t(params.first_point[l] + lane.point) * stride;
    const int points = params.num_points(l);
    for (int k = lane.point; k < points; k += Lane::kPoints, at += step) {
      visit(read<T>(params.scores, at), l, k);
    }
  }
}

// The largest logit of the lane's query-head, on the first lane of it. All lanes of the warp call
// this and the next one; `has_query_head` is false on lanes without one. A NaN logit makes the
// whole query-head NaN, as in PyTorch: the maximum loses it, and the sum has it again.
template <class T, int N, class Lane>
__device__ __forceinline__ Compute<T> find_max_logit(const KernelParams& params, const Lane& lane,
                                                     bool has_query_head,
                                                     const QueryHead<T, N>& query_head) {
  using Real = Compute<T>;
  const auto larger = [](Real a, Real b) { return std::fmax(a, b); };
  Real max_logit = -Real(INFINITY);
  if (has_query_head) {
    for_each_score<T>(params, lane, query_head.scores,
                      [&](Real x, int, int) { max_logit = larger(max_logit, x); });
  }
  return lane.reduce_to_first(max_logit, larger);
}

// Fills in the softmax of the lane's query-head.
template <class T, int N, class Lane>
__device__ __forceinline__ void find_softmax(const KernelParams& params, const Lane& lane,
                                             bool has_query_head, QueryHead<T, N>& query_head) {
  using Real = Compute<T>;
  query_head.max_logit = __shfl_sync(~0u, find_max_logit(params, lane, has_query_head, query_head),
                                     lane.qh * Lane::kPoints);
  Real sum = 0;
  if (has_query_head) {
    for_each_score<T>(params, lane, query_head.scores,
                      [&](Real x, int, int) { sum += std::exp(x - query_head.max_logit); });
  }
  query_head.softmax_scale = Real(1) / lane.reduce(sum, [](Real a, Real b) { return a + b; });
}

// The corners of the samples of a step of a warp: [query_heads][points], in shared memory.
// Query-heads are an odd number of 16 bytes apart, so that their lanes read different banks.
template <class Real, int N, int query_heads, int points>
class CornerTable {
  static constexpr int kCornersSize = int(sizeof(Corners<Real, N>)) / 16;  // in uint4
  static constexpr int kPitch = points * kCornersSize | 1;

 public:
  static constexpr int kSize = query_heads * kPitch;  // of memory, in uint4

  __device__ explicit CornerTable(uint4* memory) : memory_(memory) {}

  __device__ Corners<Real, N>& at(int qh, int point) const {
    return *reinterpret_cast<Corners<Real, N>*>(memory_ + qh * kPitch + point * kCornersSize);
  }

 private:
  uint4* memory_;
};

}  // namespace stdeform::cuda
