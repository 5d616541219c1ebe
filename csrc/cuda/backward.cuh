// The backward kernel. Rows are shared out as in the forward. The rows of the value's gradient are
// added to in memory; all other gradients have one owner.
#pragma once

#include "cuda/lanes/row_grads.cuh"
#include "cuda/lanes/rows.cuh"
#include "cuda/splits.cuh"

namespace stdeform::cuda {

// Dot products of a row of grad_out with the rows at a sample's corners, added up over the lanes
// that hold the channels: these write their shares, the lane that read the sample sums them up.
// There is room for four numbers per lane. With eight corners, pairs of lanes first exchange
// halves, so that an even lane holds what both have for corners 0 to 3, an odd one for 4 to 7.
template <class Real, int N, class Layout, int points>
class DotShares {
  static constexpr int kCorners = 1 << N;
  static constexpr int kPitch = Layout::kLanes | 1;  // odd, so that samples use different banks

 public:
  struct alignas(16) Share {
    Real of[4];
  };
  static constexpr int kSize = Layout::kRows * points * kPitch;  // of memory

  __device__ explicit DotShares(Share* memory) : memory_(memory) {}

  // Called by all lanes of the warp; `present` says whether this one holds channels of the row.
  __device__ void put(int lane, int row, int point, bool present, const Real (&dots)[kCorners]) {
    Share share;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kCorners == 8) {
        const bool odd = lane & 1;
        share.of[i] =
            (odd ? dots[4 + i] : dots[i]) + __shfl_xor_sync(~0u, odd ? dots[i] : dots[4 + i], 1);
      } else {
        share.of[i] = dots[i];
      }
    }
    if (present) memory_[(row * points + point) * kPitch + lane % Layout::kLanes] = share;
  }

  __device__ void sum_up(int row, int point, Real (&dots)[kCorners]) const {
    const Share* shares = memory_ + (row * points + point) * kPitch;
#pragma unroll
    for (int c = 0; c < kCorners; ++c) dots[c] = 0;
#pragma unroll
    for (int j = 0; j < Layout::kLanes; ++j) {
      const Share share = shares[j];
#pragma unroll
      for (int i = 0; i < 4; ++i) dots[kCorners == 8 ? j % 2 * 4 + i : i] += share.of[i];
    }
  }

 private:
  Share* memory_;
};

template <class T, int N, class Layout>
struct BackwardShape {
  using Real = Compute<T>;
  static constexpr int kRows = Layout::kRows;
  static constexpr int kPoints = kWarpSize / kRows < 8 ? kWarpSize / kRows : 8;
  using Table = CornerTable<Real, N, kRows, kPoints>;
  using Dots = DotShares<Real, N, Layout, kPoints>;
};

// Row of the value's gradient at each corner += weight * grad. Corners of weight zero are left out:
// additions to memory are what bounds this kernel.
template <class Real, int N, class Layout>
__device__ __forceinline__ void scatter(
    CellRows<Real, Layout> rows, int channels_left, const Corners<Real, N>& corners,
    const Real (&grad)[Layout::kVecsPerLane][Layout::kVecSize]) {
  uint32_t cell[1 << N];
  corners.cells(cell);
#pragma unroll
  for (int c = 0; c < (1 << N); ++c) {
    const Real weight = corners.weight[c];
    if (weight == Real(0)) continue;
    Real* row = rows[cell[c]];
#pragma unroll
    for (int i = 0; i < Layout::kVecsPerLane; ++i) {
      if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
      Real numbers[Layout::kVecSize];
#pragma unroll
      for (int j = 0; j < Layout::kVecSize; ++j) numbers[j] = weight * grad[i][j];
      add_vec(numbers, row + i * Layout::kStep);
    }
  }
}

// Writes the gradients of sample (l, k) of a row and adds to the sums of the row. `sample_row`
// counts rows as the gradients do, [B, Q, M].
template <class T, int N>
__device__ __forceinline__ void finish_sample(const KernelParams& params,
                                              const SampledRow<T, N>& row, int64_t sample_row,
                                              int l, int k, Compute<T> (&dots)[1 << N],
                                              RowSums<Compute<T>, N>& sums) {
  using Real = Compute<T>;
  const Problem& p = params.problem;
  // Read once more: kept in registers meanwhile, it would push the loads of the rows out of them.
  Real pixel[N];
  row.read_pixels(params, k, pixel);
  const auto sample = sample_at<Real, N>(params, pixel, row.attention(params, k), l);
  Real slope[N];
  interpolate<N>(sample.axes, dots, slope);
  const int64_t at = (sample_row * p.L + l) * p.K + k;
  if (p.grad_scores.data) static_cast<Real*>(p.grad_scores.data)[at] = dots[0];
  sums.attention += sample.attention * dots[0];
#pragma unroll
  for (int n = 0; n < N; ++n) slope[n] *= sample.attention;
  pass_on_pixel_grads<T, N>(params, row, at, l, k, slope, sums);
}

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<Compute<T>>)
    backward_kernel(const __grid_constant__ KernelParams params, TileShares tiles) {
  wait_for_launch_before();
  using Real = Compute<T>;
  using Shape = BackwardShape<T, N, Layout>;
  using Table = typename Shape::Table;
  using Dots = typename Shape::Dots;
  constexpr int kRows = Shape::kRows, kPoints = Shape::kPoints;
  STDEFORM_SHARED(uint4, corner_memory, kWarps * Table::kSize);
  STDEFORM_SHARED(typename Dots::Share, dot_memory, kWarps * Dots::kSize);
  constexpr int kDotWords = Dots::kSize * int(sizeof(typename Dots::Share) / sizeof(Real));
  static_assert(kDotWords >= 2 * N * kWarpSize, "splits meet in the memory of the dot products");

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(corner_memory + warp * Table::kSize);
  Dots shares(dot_memory + warp * Dots::kSize);
  const SamplingLane<kRows, kPoints> sampling(lane);
  const int row = lane / Layout::kLanes;  // whose channels the lane holds
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  const bool wants_samples = p.grad_scores.data || p.grad_positions.data || p.grad_reference.data;
  const int64_t grad_stride = p.M * p.D;             // from cell to cell
  const int batches = (params.K - 1) / kPoints + 1;  // of a level

  const auto total = [&](const Tile& tile, auto& numbers) {
    if (tile.splits == 1) return;
    add_splits<kWarps>(reinterpret_cast<Real*>(dot_memory), kDotWords, tile, warp, lane, numbers);
  };

  for_each_tile<kRows, kWarps>(params, tiles, warp, [&](const Tile& tile) {
    const int b = tile.b, m = tile.m, first_query = tile.start;
    const bool samples = sampling.in_use && first_query + sampling.row < params.Q;
    const bool present = row < kRows && first_query + row < params.Q;
    const int sampled_query = samples ? first_query + sampling.row : 0;
    const int64_t sample_row = (b * p.Q + sampled_query) * p.M + m;
    SampledRow<T, N> sampled;
    sampled.start(params, b, sampled_query, m);
    if (params.from_offsets) find_softmax(params, sampling, samples, sampled);
    const T* values = row_of<T>(p.value, b, 0, m);
    Real* grad_values = static_cast<Real*>(p.grad_value.data) + b * p.S * grad_stride + m * p.D;
    const T* grad_row = row_of<T>(p.out, b, present ? first_query + row : 0, m);
    LoadedRow<T, Layout> loaded = {};
    if (Layout::kWhole && present) loaded.load(grad_row + first_channel, params.D);
    Real grad[Layout::kVecsPerLane][Layout::kVecSize];
    loaded.widen_to(grad);

    RowSums<Real, N> sums;
    int batch = tile.split;  // of the warp's next samples, counted in the level
    for (int l = 0; l < params.L; ++l) {
      const T* cells = values + params.first_cell[l] * p.value.stride[1];
      Real* grad_cells = grad_values + params.first_cell[l] * grad_stride;
      if (samples) sampled.go_to_level(params, l, l > 0);
      sums.start_level();
      for (; batch * kPoints < params.K; batch += tile.splits) {
        const int first = batch * kPoints;
        const int count = min(params.K - first, kPoints);
        const bool reads = samples && sampling.point < count;
        if (reads) {
          const int k = first + sampling.point;
          Real pixel[N];
          sampled.read_pixels(params, k, pixel);
          const auto sample = sample_at<Real, N>(params, pixel, sampled.attention(params, k), l);
          table.at(sampling.row, sampling.point) = find_corners(params, sample, l);
        }
        __syncwarp();
        for (int i = 0; i < count; ++i) {
          Real dots[1 << N] = {};
          const Corners<Real, N>& corners = table.at(present ? row : 0, i);
          if (present && corners.cell != corners.kNone) {
            for (int channel = first_channel; channel - first_channel < params.D;
                 channel += Layout::kChannels) {
              const int left = params.D - channel;
              if (!Layout::kWhole) {
                loaded.load(grad_row + channel, left);
                loaded.widen_to(grad);
              }
              if (wants_samples) {
                const CellRows<const T, Layout> rows(cells + channel, p.value.stride[1]);
                read_corners<T, Layout>(rows, left, corners,
                                        [&](int c, int i, const auto& numbers) {
#pragma unroll
                                          for (int j = 0; j < Layout::kVecSize; ++j)
                                            dots[c] += grad[i][j] * numbers[j];
                                        });
              }
              if (p.grad_value.data) {
                const CellRows<Real, Layout> rows(grad_cells + channel, grad_stride);
                scatter<Real, N, Layout>(rows, left, corners, grad);
              }
              if (Layout::kWhole) break;
            }
          }
          if (wants_samples) shares.put(lane, row, i, present, dots);
        }
        __syncwarp();
        if (wants_samples && reads) {
          Real dots[1 << N];
          shares.sum_up(sampling.row, sampling.point, dots);
          finish_sample<T, N>(params, sampled, sample_row, l, first + sampling.point, dots, sums);
        }
      }
      batch -= batches;
      if (p.grad_reference.data) {
        sums.add_up_level(sampling);
        total(tile, sums.reference);
        if (samples && tile.split == 0) {
          write_reference_grads<Real, N>(params, sampling, sample_row, l, sums);
        }
      }
    }
    if (!p.grad_scores.data || !params.from_offsets) return;
    Real sum[1] = {sampling.reduce(sums.attention, [](Real a, Real b) { return a + b; })};
    total(tile, sum);
    if (samples) {
      differentiate_softmax(params, sampled, sampling, sample_row, sum[0], tile.split, tile.splits);
    }
  });
}

}  // namespace stdeform::cuda
