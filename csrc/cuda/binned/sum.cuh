// The sums by bins. The samples of a bin read the same corners, so a warp loads the rows of these
// once, keeps the sums of their gradients in registers, and adds them to memory when the bin
// changes.
//
//   1 schedule   which samples: the next samples_per_warp, or one   range_of_warp
//                bin of the color (deterministic)
//   2 describe   a lane per sample: corners, weights, addresses,    describe, find_corners
//                to shared memory; which samples begin a bin
//   3 sum        a lane per (corner, channels), sample by sample:   BinCorner::add
//                sum += weight * grad_out, partial dot products     (lanes.cuh)
//                grad_out * value; grad_out is loaded kAhead
//                samples ahead
//   4 change     add the sums to grad_value, load the rows of the   BinCorner::close, open
//                next corners
//   5 finish     a lane per sample: dot products -> gradients of    BinDots::add_up,
//                attention and of the pixel coordinates             interpolate
//
// Shared memory: the described samples and the partial dot products of each warp.
#pragma once

#include "cuda/binned/assign.cuh"
#include "cuda/binned/lanes.cuh"

namespace stdeform::cuda {

// The sample that a lane describes and finishes.
template <class T, int N>
struct LaneSample {
  using Real = Compute<T>;

  // The sample in slot `slot` of bins.samples.
  __device__ __forceinline__ static LaneSample at(const KernelParams& params, const Bins& bins,
                                                  uint32_t slot) {
    const uint32_t number = bins.samples[slot];
    uint32_t in_query_head = number;
    const uint32_t query_head = bins.by_P.divide(in_query_head, uint32_t(params.P));
    int l = 0;
    while (in_query_head >= uint32_t(params.first_point[l + 1])) ++l;
    return {number, in_query_head, l, ChunkQueryHead(params, bins, query_head),
            static_cast<const BinRecord<Real>*>(bins.records)[slot]};
  }

  __device__ __forceinline__ int64_t in_problem(const KernelParams& params) const {
    return query_head.in_problem(params) * params.P + in_query_head;
  }

  uint32_t number;         // in the chunk
  uint32_t in_query_head;  // in 0..P
  int l;
  ChunkQueryHead query_head;
  BinRecord<Real> record;
};

// Fills in a sample for all lanes and returns its bin.
template <class T, int N>
__device__ __forceinline__ uint32_t describe(const KernelParams& params, const Bins& bins,
                                             const LaneSample<T, N>& lane_sample,
                                             BinSample<T, N>& to) {
  const Problem& p = params.problem;
  const int l = lane_sample.l;
  const auto sample = sample_at<Compute<T>, N>(params, lane_sample.record.pixel,
                                               lane_sample.record.attention, l, true);
  const auto corners = find_corners(params, sample, l);
  uint32_t exists = ~0u;
  uint32_t bin = lane_sample.query_head.head * bins.per_head + bins.first[l], stride = 1;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto& axis = sample.axes[n];
    // The corners with bit n set, of eight: 0xaa, 0xcc, 0xf0.
    const uint32_t high = n == 0 ? 0xaa : n == 1 ? 0xcc : 0xf0;
    if (!axis.has_low) exists &= high;
    if (!axis.has_high) exists &= ~high;
    to.to_next[n] = corners.to_next[n];
    bin += bin_along(axis) * stride;
    stride *= uint32_t(params.size[l][n]) + 1;
  }
#pragma unroll
  for (int c = 0; c < (1 << N); ++c) to.weight[c] = corners.weight[c];
  const uint64_t cell = uint32_t(params.first_cell[l]) + uint64_t(corners.cell);
  const ChunkQueryHead& at = lane_sample.query_head;
  to.grad_row = row_of<T>(p.grad_out, at.b, at.q, at.m);
  to.value_row = row_of<T>(p.value, at.b, cell, at.m);
  to.sum_row = static_cast<Compute<T>*>(p.grad_value.data) +
               ((at.b * uint64_t(p.S) + cell) * uint32_t(params.M) + at.m) * uint32_t(params.D);
  to.exists = exists;
  return bin;
}

// Bins with the parity of `color` along every axis, bit n that of axis n: no two of them share a
// corner. They are numbered through all heads and levels.
template <int N>
struct BinsOfColor {
  __host__ __device__ static uint32_t along(int size, int color, int n) {
    return (uint32_t(size) + 2 - (color >> n & 1)) / 2;  // of size + 1
  }

  __host__ __device__ static int64_t in_head(const KernelParams& params, int color) {
    int64_t number = 0;
    for (int l = 0; l < params.L; ++l) {
      int64_t of_level = 1;
      for (int n = 0; n < N; ++n) of_level *= along(params.size[l][n], color, n);
      number += of_level;
    }
    return number;
  }

  // The bin with a number, in the chunk.
  __device__ static uint32_t find(const KernelParams& params, const Bins& bins, int color,
                                  int64_t number) {
    const int64_t per_head = in_head(params, color);
    const auto head = uint32_t(number / per_head);
    auto rest = uint32_t(number % per_head);
    int l = 0;
    for (;; ++l) {
      uint32_t of_level = 1;
      for (int n = 0; n < N; ++n) of_level *= along(params.size[l][n], color, n);
      if (rest < of_level) break;
      rest -= of_level;
    }
    uint32_t bin = head * bins.per_head + bins.first[l], stride = 1;
    for (int n = 0; n < N; ++n) {
      const uint32_t number_along = along(params.size[l][n], color, n);
      bin += (rest % number_along * 2 + (color >> n & 1)) * stride;
      rest /= number_along;
      stride *= uint32_t(params.size[l][n]) + 1;
    }
    return bin;
  }
};

// Samples [first, last) of `bins.samples` that a warp works on.
struct SampleRange {
  uint32_t first, last;
};

// One bin of the color per warp or, if color < 0, the next samples_per_warp samples.
template <int N>
__device__ __forceinline__ SampleRange range_of_warp(const KernelParams& params, const Bins& bins,
                                                     int color) {
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (color < 0) {
    const int64_t total = *bins.total, first = min(warp * bins.samples_per_warp, total);
    return {uint32_t(first), uint32_t(min(first + bins.samples_per_warp, total))};
  }
  if (warp >= bins.heads * BinsOfColor<N>::in_head(params, color)) return {0, 0};
  const uint32_t bin = BinsOfColor<N>::find(params, bins, color, warp);
  return {bins.end[bin] - bins.count[bin], bins.end[bin]};
}

// Rows of grad_out that a warp loads ahead: two where registers suffice.
template <class Layout>
constexpr int kAhead = Layout::kWhole && Layout::kVecsPerLane * Layout::kVecSize <= 12 ? 2 : 1;

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kThreads, kBinBlocks<Compute<T>>)
    bin_backward_kernel(const __grid_constant__ KernelParams params,
                        const __grid_constant__ Bins bins, int color) {
  wait_for_launch_before();
  using Real = Compute<T>;
  using Sample = BinSample<T, N>;
  using Dots = BinDots<Real, N>;
  constexpr int kBatch = kBinBatch<Real>;
  constexpr int kSamples = kBatch + kAhead<Layout>;  // of a warp, with those loaded ahead
  constexpr int kBuffers = kAhead<Layout> + 1;
  constexpr uint32_t kAfter = ~0u << (kWarpSize - kBuffers);  // past the last sample
  STDEFORM_SHARED(Sample, sample_memory, kWarps * kSamples);
  STDEFORM_SHARED(typename Dots::Partial, dot_memory, kWarps * Dots::kSize);

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  Sample* const samples = sample_memory + warp * kSamples;
  const Dots partials(dot_memory + warp * Dots::kSize);
  const int corner = lane / Layout::kLanes * kBinCorners<N>;  // the first one
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  const bool one_pass = params.D <= Layout::kChannels;
  const bool needs_sample_grads = p.grad_scores.data || needs_pixel_grads(p);
  const bool is_exclusive = color >= 0;  // no other warp adds to the same rows

  // 1 schedule
  const SampleRange range = range_of_warp<N>(params, bins, color);
  BinCorner<T, N, Layout> corners;  // of the lane
  uint32_t last_bin = kNoBin;
  for (uint32_t first = range.first; first < range.last; first += kBatch) {
    const int count = int(min(range.last - first, uint32_t(kBatch)));
    // 2 describe
    // Lanes without a sample describe the last one: what is loaded ahead must exist.
    const auto lane_sample = LaneSample<T, N>::at(params, bins, first + min(lane, count - 1));
    Sample described;
    const uint32_t bin = describe(params, bins, lane_sample, described);
    if (lane < kBatch) samples[lane] = described;
    if (lane < kAhead<Layout>) samples[kBatch + lane].grad_row = described.grad_row;
    // A bit for each sample in another bin than the one before it, or that does not exist.
    const uint32_t bin_before = __shfl_up_sync(~0u, bin, 1);
    const uint32_t all_changes = __ballot_sync(
        ~0u, lane >= count || (lane ? bin != bin_before : bin != last_bin || !one_pass));
    last_bin = __shfl_sync(~0u, bin, kWarpSize - 1);
    __syncwarp();

    Real dots[1 << N] = {};  // of the lane's sample
    for (int channel = first_channel; channel - first_channel < params.D;
         channel += Layout::kChannels) {
      const int left = params.D - channel;
      const Sample* sample = samples;
      auto* partial = partials.of_lane(corner, lane % Layout::kLanes);
      // A ring of kBuffers rows of grad_out, indexed by constants: nothing is moved in registers.
      LoadedRow<T, Layout> rows[kBuffers];
#pragma unroll
      for (int i = 0; i < kAhead<Layout>; ++i) rows[i].load(samples[i].grad_row + channel, left);
      // 3 sum
      const auto add_sample = [&](int buffer) {
        rows[(buffer + kAhead<Layout>) % kBuffers].load(sample[kAhead<Layout>].grad_row + channel,
                                                        left);
        Real grad[Layout::kVecsPerLane][Layout::kVecSize];
        rows[buffer].widen_to(grad);
        const auto& weights = *reinterpret_cast<const PerCorner<Real, N>*>(&sample->weight[corner]);
        *partial = corners.add(weights, grad);
        ++sample;
        partial += Dots::kStep;
      };
      uint32_t changes = all_changes;
#pragma unroll 1
      for (int i = 0; i < count; i += kBuffers, changes = changes >> kBuffers | kAfter) {
        if ((changes & ((1u << kBuffers) - 1)) == 0) {  // as most of the time
#pragma unroll
          for (int j = 0; j < kBuffers; ++j) add_sample(j);
          continue;
        }
#pragma unroll
        for (int j = 0; j < kBuffers; ++j) {
          if (i + j >= count) break;
          // 4 change
          if (changes >> j & 1) {
            corners.close(is_exclusive, left);
            corners.open(p, *sample, corner, channel, left, needs_sample_grads);
          }
          add_sample(j);
        }
      }
      __syncwarp();
      if (needs_sample_grads && lane < count) partials.add_up(lane, dots);
      if (one_pass) break;
      corners.close(is_exclusive, left);
      __syncwarp();
    }

    // 5 finish
    if (needs_sample_grads && lane < count) {
      // Where a corner does not exist its product is zero, whatever its weight.
      AxisSample<Real, IntOf<Real>> axes[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        split(lane_sample.record.pixel[n], axes[n].low, axes[n].high_weight);
        axes[n].low_weight = 1 - axes[n].high_weight;
        axes[n].low_slope = -1, axes[n].high_slope = 1;
      }
      Real slope[N];
      interpolate<N>(axes, dots, slope);
      const int64_t in_problem = lane_sample.in_problem(params);
      if (p.grad_scores.data) static_cast<Real*>(p.grad_scores.data)[in_problem] = dots[0];
      if (needs_pixel_grads(p)) {
        Real* to = pixel_grads_of<T, N>(params, bins, lane_sample.number, in_problem);
#pragma unroll
        for (int n = 0; n < N; ++n) to[n] = lane_sample.record.attention * slope[n];
      }
    }
    __syncwarp();
  }
  corners.close(is_exclusive, params.D - first_channel);
}

}  // namespace stdeform::cuda
