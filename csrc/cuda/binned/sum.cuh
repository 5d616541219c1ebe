// The sums by bins. A warp goes through samples that read the same corners: it loads the rows of
// these once, keeps the sums of their gradients in registers, and adds them to memory when the bin
// changes.
#pragma once

#include "cuda/binned/assign.cuh"
#include "cuda/binned/lanes.cuh"

namespace stdeform::cuda {

// One sample as the lane holds it that describes it.
template <class T, int N>
struct OwnSample {
  using Real = Compute<T>;

  // The one at a place among the sorted ones.
  __device__ __forceinline__ static OwnSample at(const KernelParams& params, const Bins& bins,
                                                 uint32_t place) {
    const uint32_t number = bins.samples[place];
    uint32_t in_row = number;
    const uint32_t row = bins.by_row_size.divide(in_row, uint32_t(params.L * params.K));
    uint32_t k = in_row;
    const uint32_t l = bins.by_K.divide(k, uint32_t(params.K));
    return {number, in_row, int(l), ChunkRow(params, bins, row),
            static_cast<const BinRecord<Real>*>(bins.records)[place]};
  }

  __device__ __forceinline__ int64_t in_problem(const KernelParams& params) const {
    return row.in_problem(params) * (int64_t(params.L) * params.K) + in_row;
  }

  uint32_t number;  // in the chunk
  uint32_t in_row;
  int l;
  ChunkRow row;
  BinRecord<Real> record;
};

// Fills in a sample for all lanes and returns its bin.
template <class T, int N>
__device__ __forceinline__ uint32_t describe(const KernelParams& params, const Bins& bins,
                                             const OwnSample<T, N>& own, BinSample<T, N>& to) {
  const Problem& p = params.problem;
  const auto sample =
      sample_at<Compute<T>, N>(params, own.record.pixel, own.record.attention, own.l, true);
  const auto corners = find_corners(params, sample, own.l);
  uint32_t exists = ~0u;
  uint32_t bin = own.row.head * bins.per_head + bins.first[own.l], stride = 1;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto& axis = sample.axes[n];
    // Corners whose bit n is set, of eight: 0xaa, 0xcc, 0xf0.
    const uint32_t high = n == 0 ? 0xaa : n == 1 ? 0xcc : 0xf0;
    if (!axis.has_low) exists &= high;
    if (!axis.has_high) exists &= ~high;
    to.to_next[n] = corners.to_next[n];
    bin += bin_along(axis) * stride;
    stride *= uint32_t(params.size[own.l][n]) + 1;
  }
#pragma unroll
  for (int c = 0; c < (1 << N); ++c) to.weight[c] = corners.weight[c];
  const uint64_t cell = uint32_t(params.first_cell[own.l]) + uint64_t(corners.cell);
  const ChunkRow& row = own.row;
  to.grad_row = row_of<T>(p.out, row.b, row.q, row.m);
  to.value_row = row_of<T>(p.value, row.b, cell, row.m);
  to.sum_row = static_cast<Compute<T>*>(p.grad_value.data) +
               ((row.b * uint64_t(p.S) + cell) * uint32_t(params.M) + row.m) * uint32_t(params.D);
  to.exists = exists;
  return bin;
}

// Bins whose coordinates all have the parity of `color`, bit n that of axis n: no two of them share
// a corner. They are numbered through all heads and levels.
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

// A bin of the color for each warp, or with color < 0 the next samples_per_warp samples.
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
  constexpr int kPlaces = kAhead<Layout> + 1;
  constexpr uint32_t kAfter = ~0u << (kWarpSize - kPlaces);  // no samples
  STDEFORM_SHARED(Sample, sample_memory, kWarps * kSamples);
  STDEFORM_SHARED(typename Dots::Share, dot_memory, kWarps * Dots::kSize);

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  Sample* const samples = sample_memory + warp * kSamples;
  const Dots shares(dot_memory + warp * Dots::kSize);
  const int corner = lane / Layout::kLanes * kBinCorners<N>;  // the first one
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  const bool one_pass = params.D <= Layout::kChannels;
  const bool wants_samples = p.grad_scores.data || wants_pixel_grads(p);
  const bool alone = color >= 0;

  const SampleRange range = range_of_warp<N>(params, bins, color);
  BinCorner<T, N, Layout> own;
  uint32_t last_bin = kNoBin;
  for (uint32_t first = range.first; first < range.last; first += kBatch) {
    const int count = int(min(range.last - first, uint32_t(kBatch)));
    // Lanes without a sample describe the last one: what is loaded ahead must exist.
    const auto mine = OwnSample<T, N>::at(params, bins, first + min(lane, count - 1));
    Sample described;
    const uint32_t bin = describe(params, bins, mine, described);
    if (lane < kBatch) samples[lane] = described;
    if (lane < kAhead<Layout>) samples[kBatch + lane].grad_row = described.grad_row;
    // A bit for each sample that is not of the bin of the one before, or does not exist.
    const uint32_t bin_before = __shfl_up_sync(~0u, bin, 1);
    const uint32_t others = __ballot_sync(
        ~0u, lane >= count || (lane ? bin != bin_before : bin != last_bin || !one_pass));
    last_bin = __shfl_sync(~0u, bin, kWarpSize - 1);
    __syncwarp();

    Real dots[1 << N] = {};  // of the lane's own sample
    for (int channel = first_channel; channel - first_channel < params.D;
         channel += Layout::kChannels) {
      const int left = params.D - channel;
      const Sample* sample = samples;
      auto* share = shares.of_lane(corner, lane % Layout::kLanes);
      // Rows of grad_out take turns in places that do not change: nothing is moved in registers.
      LoadedRow<T, Layout> rows[kPlaces];
#pragma unroll
      for (int i = 0; i < kAhead<Layout>; ++i) rows[i].load(samples[i].grad_row + channel, left);
      const auto add_sample = [&](int place) {
        rows[(place + kAhead<Layout>) % kPlaces].load(sample[kAhead<Layout>].grad_row + channel,
                                                      left);
        Real grad[Layout::kVecsPerLane][Layout::kVecSize];
        rows[place].widen_to(grad);
        const auto& weights = *reinterpret_cast<const OfCorners<Real, N>*>(&sample->weight[corner]);
        *share = own.add(weights, grad);
        ++sample;
        share += Dots::kStep;
      };
      uint32_t other = others;
#pragma unroll 1
      for (int i = 0; i < count; i += kPlaces, other = other >> kPlaces | kAfter) {
        if ((other & ((1u << kPlaces) - 1)) == 0) {  // as most of the time
#pragma unroll
          for (int j = 0; j < kPlaces; ++j) add_sample(j);
          continue;
        }
#pragma unroll
        for (int j = 0; j < kPlaces; ++j) {
          if (i + j >= count) break;
          if (other >> j & 1) {
            own.close(alone, left);
            own.open(p, *sample, corner, channel, left, wants_samples);
          }
          add_sample(j);
        }
      }
      __syncwarp();
      if (wants_samples && lane < count) shares.add_up(lane, dots);
      if (one_pass) break;
      own.close(alone, left);
      __syncwarp();
    }

    if (wants_samples && lane < count) {
      // Where a corner does not exist its product is zero, whatever its weight.
      AxisSample<Real, IntOf<Real>> axes[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        split(mine.record.pixel[n], axes[n].low, axes[n].high_weight);
        axes[n].low_weight = 1 - axes[n].high_weight;
        axes[n].low_slope = -1, axes[n].high_slope = 1;
      }
      Real slope[N];
      interpolate<N>(axes, dots, slope);
      const int64_t in_problem = mine.in_problem(params);
      if (p.grad_scores.data) static_cast<Real*>(p.grad_scores.data)[in_problem] = dots[0];
      if (wants_pixel_grads(p)) {
        Real* to = pixel_grads_of<T, N>(params, bins, mine.number, in_problem);
#pragma unroll
        for (int n = 0; n < N; ++n) to[n] = mine.record.attention * slope[n];
      }
    }
    __syncwarp();
  }
  own.close(alone, params.D - first_channel);
}

}  // namespace stdeform::cuda
