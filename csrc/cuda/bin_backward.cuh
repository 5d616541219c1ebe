// The backward by bins. A warp goes through samples that read the same corners: it loads the rows
// of these once, keeps the sums of their gradients in registers, and adds them to memory when the
// bin changes. Then every row is finished from what its samples have left.
#pragma once

#include "binning.cuh"
#include "row_grads.cuh"

namespace stdeform::cuda {

// Blocks that a multiprocessor of 64 Ki registers has room for.
template <class Real>
constexpr int kBinBlocks = sizeof(Real) == 8 ? 2 : 4;

// Samples that a warp describes at a time: as many as leave a block less than 48 KiB.
template <class Real>
constexpr int kBinBatch = sizeof(Real) == 8 ? 16 : 32;

// The lanes of a warp, N axes: a corner each, and of its row the channels that the layout says.
template <int N, int channels>
struct BinLayoutOf {
  static constexpr int kLanes = kWarpSize >> N;
  static constexpr int kPerLane = channels / kLanes;
  static constexpr int kGroup = kPerLane % 4 == 0 ? 4 : 2;
  using type = RowLayout<kLanes, kPerLane / kGroup, kGroup, true>;
};
template <int N, int channels>
using BinLayout = typename BinLayoutOf<N, channels>::type;
template <int N>
using AnyBinLayout = RowLayout<(kWarpSize >> N), 8, 1, false>;

// A sample as all lanes of the warp see it.
template <class T, int N>
struct alignas(16) BinSample {
  Compute<T> weight[1 << N];  // interpolation weight times attention, of each corner
  const T* grad_row;          // of grad_out
  const T* value_row;         // of the lowest corner that exists
  Compute<T>* sum_row;        // the same row of the value's gradient
  uint32_t bin;               // in the chunk
  uint32_t to_next[N];        // rows from the lower to the higher corner along each axis
  uint32_t exists;            // a bit for each corner
};

// The lanes' shares of the dot products of a warp's samples with their corners. The samples are an
// odd number of shares apart, so that lanes that sum them up read different banks.
template <class Real>
class BinDots {
 public:
  struct alignas(16) Share {
    Real of[4];
  };
  static constexpr int kPitch = kWarpSize / 4 + 1;
  static constexpr int kSize = kBinBatch<Real> * kPitch;  // of memory

  __device__ explicit BinDots(Share* memory) : memory_(memory) {}

  // Where a lane's share for sample 0 lies; those for the samples after it are kStep apart.
  static constexpr int kStep = 4 * kPitch;
  __device__ __forceinline__ Real* of_lane(int lane) const {
    return &memory_[lane / 4].of[lane % 4];
  }

  template <int corners>
  __device__ __forceinline__ void add_up(int sample, Real (&dots)[corners]) const {
    constexpr int kShares = kWarpSize / 4 / corners;  // of a corner
#pragma unroll
    for (int c = 0; c < corners; ++c) {
#pragma unroll
      for (int i = 0; i < kShares; ++i) {
        const Share share = memory_[sample * kPitch + c * kShares + i];
        dots[c] += (share.of[0] + share.of[1]) + (share.of[2] + share.of[3]);
      }
    }
  }

 private:
  Share* memory_;
};

// The channels of a row that a lane holds, as they lie in memory; zeros past the end.
template <class T, class Layout>
struct LoadedRow {
  Run<T, Layout::kGroup> runs[Layout::kGroups];

  __device__ __forceinline__ void load(const T* row, int channels_left) {
#pragma unroll
    for (int i = 0; i < Layout::kGroups; ++i) {
      const bool inside = Layout::kWhole || i * Layout::kStep < channels_left;
      runs[i] =
          inside ? load_run<Layout::kGroup>(row + i * Layout::kStep) : Run<T, Layout::kGroup>{};
    }
  }
  __device__ __forceinline__ void widen_to(
      Compute<T> (&numbers)[Layout::kGroups][Layout::kGroup]) const {
#pragma unroll
    for (int i = 0; i < Layout::kGroups; ++i) widen<T>(runs[i], numbers[i]);
  }
};

// One corner of one bin as a lane holds it.
template <class T, class Layout>
struct BinCorner {
  using Real = Compute<T>;

  // Goes over to the bin of a sample: loads the row of the lane's corner, starts its sums anew.
  template <int N>
  __device__ __forceinline__ void open(const Problem& p, const BinSample<T, N>& sample, int corner,
                                       int channel, int channels_left, bool wants_values) {
    bin = sample.bin;
    exists = sample.exists >> corner & 1;
    int64_t row = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) row += corner >> n & 1 ? sample.to_next[n] : 0;
    sum_row = sample.sum_row + row * (p.M * p.D) + channel;
    LoadedRow<T, Layout> loaded = {};
    if (exists && wants_values) {
      loaded.load(sample.value_row + row * p.value.stride[1] + channel, channels_left);
    }
    loaded.widen_to(values);
#pragma unroll
    for (int i = 0; i < Layout::kGroups; ++i) {
#pragma unroll
      for (int j = 0; j < Layout::kGroup; ++j) sums[i][j] = 0;
    }
  }

  // Adds the sums to memory; alone, if no other warp can be adding to the same row.
  __device__ __forceinline__ void close(bool alone, int channels_left) {
    if (bin == kNoBin || !exists) return;
#pragma unroll
    for (int i = 0; i < Layout::kGroups; ++i) {
      if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
      Real* to = sum_row + i * Layout::kStep;
      if (alone) {
        Real numbers[Layout::kGroup];
        const auto* run = reinterpret_cast<const Run<Real, Layout::kGroup>*>(to);
        widen<Real>(*run, numbers);
#pragma unroll
        for (int j = 0; j < Layout::kGroup; ++j) numbers[j] += sums[i][j];
        store_run(numbers, to);
      } else {
        add_run(sums[i], to);
      }
    }
  }

  uint32_t bin = kNoBin;
  bool exists = false;
  Real* sum_row = nullptr;
  Real values[Layout::kGroups][Layout::kGroup];
  Real sums[Layout::kGroups][Layout::kGroup];
};

// One sample as the lane holds it that describes it.
struct OwnSample {
  __device__ __forceinline__ OwnSample(const Call& call, uint32_t number)
      : k(int(number % uint32_t(call.K))),
        l(int(number / uint32_t(call.K) % uint32_t(call.L))),
        row(number / uint32_t(call.K) / uint32_t(call.L)) {}

  int k, l;
  uint32_t row;  // in the chunk
};

template <class T>
__device__ __forceinline__ SampledRow<T> sampled_row(const Call& call, const Bins& bins,
                                                     const ChunkRow& at) {
  SampledRow<T> row(call.problem, at.b, at.q, at.m);
  if (call.problem.reference.data) {
    const Compute<T>* kept = static_cast<const Compute<T>*>(bins.softmax) + 2 * at.row;
    row.largest = kept[0];
    row.scale = kept[1];
  }
  return row;
}

template <class T, int N>
__device__ void describe(const Call& call, const Bins& bins, const ChunkRow& at, int l,
                         const Compute<T> (&pixel)[N], Compute<T> attention, BinSample<T, N>& to) {
  const Problem& p = call.problem;
  const auto sample = sample_at<Compute<T>, N>(call, pixel, attention, l);
  const auto corners = find_corners(call, sample, l);
  uint32_t exists = ~0u;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    // Corners whose bit n is set, of eight: 0xaa, 0xcc, 0xf0.
    const uint32_t high = n == 0 ? 0xaa : n == 1 ? 0xcc : 0xf0;
    if (!sample.axes[n].has_low) exists &= high;
    if (!sample.axes[n].has_high) exists &= ~high;
    to.to_next[n] = corners.to_next[n];
  }
#pragma unroll
  for (int c = 0; c < (1 << N); ++c) to.weight[c] = corners.weight[c];
  const int64_t cell = call.first_cell[l] + int64_t(corners.cell);
  to.grad_row = static_cast<const T*>(p.out.data) + at.b * p.out.stride[0] +
                at.q * p.out.stride[1] + at.m * p.out.stride[2];
  to.value_row = static_cast<const T*>(p.value.data) + at.b * p.value.stride[0] +
                 cell * p.value.stride[1] + at.m * p.value.stride[2];
  to.sum_row =
      static_cast<Compute<T>*>(p.grad_value.data) + ((at.b * p.S + cell) * p.M + at.m) * p.D;
  to.bin = uint32_t(at.head) * bins.per_head + find_bin<Compute<T>, N>(call, bins, pixel, l);
  to.exists = exists;
}

// Bins whose coordinates all have the parity of `turn`, bit n that of axis n: no two of them share
// a corner. They are numbered through all heads and levels.
template <int N>
struct BinsOfTurn {
  __host__ __device__ static uint32_t along(int size, int turn, int n) {
    return (uint32_t(size) + 2 - (turn >> n & 1)) / 2;  // of size + 1
  }

  __host__ __device__ static int64_t in_head(const Call& call, int turn) {
    int64_t number = 0;
    for (int l = 0; l < call.L; ++l) {
      int64_t of_level = 1;
      for (int n = 0; n < N; ++n) of_level *= along(call.size[l][n], turn, n);
      number += of_level;
    }
    return number;
  }

  // The bin with a number, in the chunk.
  __device__ static uint32_t find(const Call& call, const Bins& bins, int turn, int64_t number) {
    const int64_t per_head = in_head(call, turn);
    const auto head = uint32_t(number / per_head);
    auto rest = uint32_t(number % per_head);
    int l = 0;
    for (;; ++l) {
      uint32_t of_level = 1;
      for (int n = 0; n < N; ++n) of_level *= along(call.size[l][n], turn, n);
      if (rest < of_level) break;
      rest -= of_level;
    }
    uint32_t bin = head * bins.per_head + bins.first[l], stride = 1;
    for (int n = 0; n < N; ++n) {
      const uint32_t number_along = along(call.size[l][n], turn, n);
      bin += (rest % number_along * 2 + (turn >> n & 1)) * stride;
      rest /= number_along;
      stride *= uint32_t(call.size[l][n]) + 1;
    }
    return bin;
  }
};

// Samples [first, last) of `bins.samples` that a warp works on.
struct SampleRange {
  uint32_t first, last;
};

// A bin of the turn for each warp, or with turn < 0 as many samples as a run has.
template <int N>
__device__ __forceinline__ SampleRange range_of_warp(const Call& call, const Bins& bins, int turn) {
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (turn < 0) {
    const int64_t total = *bins.total, first = min(warp * bins.run, total);
    return {uint32_t(first), uint32_t(min(first + bins.run, total))};
  }
  if (warp >= bins.heads * BinsOfTurn<N>::in_head(call, turn)) return {0, 0};
  const uint32_t bin = BinsOfTurn<N>::find(call, bins, turn, warp);
  return {bins.end[bin] - bins.count[bin], bins.end[bin]};
}

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kThreads, kBinBlocks<Compute<T>>)
    bin_backward_kernel(const __grid_constant__ Call call, const __grid_constant__ Bins bins,
                        int turn) {
  using Real = Compute<T>;
  using Sample = BinSample<T, N>;
  using Dots = BinDots<Real>;
  constexpr int kBatch = kBinBatch<Real>;
  constexpr int kSamples = kBatch + 1;  // of a warp, and one more to load from
  STDEFORM_SHARED(Sample, sample_memory, kWarps * kSamples);
  STDEFORM_SHARED(typename Dots::Share, dot_memory, kWarps * Dots::kSize);

  const Problem& p = call.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  Sample* const samples = sample_memory + warp * kSamples;
  const Dots shares(dot_memory + warp * Dots::kSize);
  const int corner = lane / Layout::kLanes;
  const int first_channel = lane % Layout::kLanes * Layout::kGroup;
  const bool one_pass = call.D <= Layout::kChannels;
  const bool wants_samples = p.grad_scores.data || wants_pixel_grads(p);
  const bool alone = turn >= 0;

  const SampleRange range = range_of_warp<N>(call, bins, turn);
  BinCorner<T, Layout> own;
  for (uint32_t first = range.first; first < range.last; first += kBatch) {
    const int count = int(min(range.last - first, uint32_t(kBatch)));
    // Lanes without a sample describe the last one: what is loaded ahead must exist.
    const OwnSample mine(call, bins.samples[first + min(lane, count - 1)]);
    const ChunkRow at(call, bins, mine.row);
    const auto row = sampled_row<T>(call, bins, at);
    Real pixel[N];
    read_pixels<T, N>(call, row, mine.l, mine.k, pixel);
    const Real weight = attention<T>(p, row, score<T>(p, row, mine.l, mine.k));
    if (lane < kBatch) describe<T, N>(call, bins, at, mine.l, pixel, weight, samples[lane]);
    if (lane == 0) samples[kBatch].grad_row = samples[0].grad_row;
    __syncwarp();

    Real dots[1 << N] = {};  // of the lane's own sample
    for (int channel = first_channel; channel - first_channel < call.D;
         channel += Layout::kChannels) {
      const int left = call.D - channel;
      const Sample* sample = samples;
      Real* share = shares.of_lane(lane);
      LoadedRow<T, Layout> next;  // one sample ahead, so that nothing waits for it
      next.load(sample->grad_row + channel, left);
#pragma unroll 2
      for (int i = 0; i < count; ++i, ++sample, share += Dots::kStep) {
        Real grad[Layout::kGroups][Layout::kGroup];
        next.widen_to(grad);
        next.load(sample[1].grad_row + channel, left);
        if (sample->bin != own.bin) {
          own.close(alone, left);
          own.open(p, *sample, corner, channel, left, wants_samples);
        }
        const Real weight_here = sample->weight[corner];
        Real dot = 0;
#pragma unroll
        for (int g = 0; g < Layout::kGroups; ++g) {
#pragma unroll
          for (int j = 0; j < Layout::kGroup; ++j) dot += own.values[g][j] * grad[g][j];
          multiply_add(weight_here, grad[g], own.sums[g]);
        }
        *share = dot;
      }
      __syncwarp();
      if (wants_samples && lane < count) shares.add_up(lane, dots);
      if (one_pass) break;
      own.close(alone, left);
      own.bin = kNoBin;
      __syncwarp();
    }

    if (wants_samples && lane < count) {
      Real slope[N];
      const auto sample = sample_at<Real, N>(call, pixel, weight, mine.l);
      interpolate<N>(sample.axes, dots, slope);
      if (p.grad_scores.data) {
        static_cast<Real*>(p.grad_scores.data)[at.in_problem(call, mine.l, mine.k)] = dots[0];
      }
      if (wants_pixel_grads(p)) {
        Real* to = pixel_grads_of<T, N>(call, bins, at, mine.l, mine.k);
#pragma unroll
        for (int n = 0; n < N; ++n) to[n] = weight * slope[n];
      }
    }
    __syncwarp();
  }
  own.close(alone, call.D - first_channel);
}

// Finishes the gradients of every row from those of its attention weights and pixel coordinates.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    finish_rows_kernel(const __grid_constant__ Call call, const __grid_constant__ Bins bins) {
  using Real = Compute<T>;
  const Problem& p = call.problem;
  visit_chunk_row(call, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    const auto row = sampled_row<T>(call, bins, at);
    const int64_t gradient_row = (at.b * p.Q + at.q) * p.M + at.m;
    RowSums<Real, N> sums;
    for (int l = 0; l < call.L; ++l) {
      sums.start_level();
      for (int k = lane.point; present && k < call.K; k += RowLane::kPoints) {
        const int64_t sample = at.in_problem(call, l, k);
        if (p.grad_scores.data && p.reference.data) {
          sums.attention += attention<T>(p, row, score<T>(p, row, l, k)) *
                            static_cast<const Real*>(p.grad_scores.data)[sample];
        }
        if (!wants_pixel_grads(p)) continue;
        const Real* kept = pixel_grads_of<T, N>(call, bins, at, l, k);
        Real pixel[N];
#pragma unroll
        for (int n = 0; n < N; ++n) pixel[n] = kept[n];
        pass_on_pixel_grads<T, N>(call, row, sample, l, k, pixel, sums);
      }
      write_reference_grads<Real, N>(call, lane, present, gradient_row, l, sums);
    }
    differentiate_softmax<T>(call, row, lane, present, gradient_row, sums.attention);
  });
}

}  // namespace stdeform::cuda
