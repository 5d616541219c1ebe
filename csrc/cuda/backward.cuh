// The direct backward kernel. Tiles and the roles of lanes are those of forward.cuh; queries are in
// plain order. The gradient of the value is added to in memory, all others have one owner.
//
//   1 schedule  which tile, which split of its samples          for_each_tile     tiles.cuh
//   2 softmax   largest logit and sum of a query-head           find_softmax      lanes/samples.cuh
//   3 sample    a lane per (query-head, point): corners and     find_corners      lanes/samples.cuh
//               weights, to shared memory
//   4 gather    a lane per (query-head, channels): partial dot  read_corners      lanes/rows.cuh
//               products of grad_out with each corner           PartialDots
//   5 scatter   grad_value[cell] += weight * grad_out           scatter
//   6 finish    per sample: dot products -> gradients of        finish_sample
//               attention and position; sums for 7              pass_on_pixel_grads
//   7 finish    per query-head: gradients of the reference (of  write_reference_grads
//               each level), then of the logits; sums over      differentiate_softmax
//               splits                                          add_splits        splits.cuh
//
// Shared memory: the corner table and the partial dot products of each warp; the latter also for 7.
#pragma once

#include "cuda/lanes/input_grads.cuh"
#include "cuda/lanes/rows.cuh"
#include "cuda/splits.cuh"

namespace stdeform::cuda {

// Dot products of a row of grad_out with the rows at a sample's corners: the lanes that hold the
// channels write partial sums, the lane that read the sample adds them up. There is room for four
// numbers per lane. With eight corners, pairs of lanes first exchange halves, so that an even lane
// holds the sums of both for corners 0 to 3, an odd one for 4 to 7.
template <class Real, int N, class Layout, int points>
class PartialDots {
  static constexpr int kCorners = 1 << N;
  static constexpr int kPitch = Layout::kLanes | 1;  // odd, so that samples use different banks

 public:
  struct alignas(16) Partial {
    Real of[4];
  };
  static constexpr int kSize = Layout::kRows * points * kPitch;  // of memory

  __device__ explicit PartialDots(Partial* memory) : memory_(memory) {}

  // Called by all lanes of the warp, also by those without channels.
  __device__ void put(int lane, int qh, int point, bool has_channels,
                      const Real (&dots)[kCorners]) {
    Partial partial;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kCorners == 8) {
        const bool odd = lane & 1;
        partial.of[i] =
            (odd ? dots[4 + i] : dots[i]) + __shfl_xor_sync(~0u, odd ? dots[i] : dots[4 + i], 1);
      } else {
        partial.of[i] = dots[i];
      }
    }
    if (has_channels) memory_[(qh * points + point) * kPitch + lane % Layout::kLanes] = partial;
  }

  __device__ void add_up(int qh, int point, Real (&dots)[kCorners]) const {
    const Partial* partials = memory_ + (qh * points + point) * kPitch;
#pragma unroll
    for (int c = 0; c < kCorners; ++c) dots[c] = 0;
#pragma unroll
    for (int j = 0; j < Layout::kLanes; ++j) {
      const Partial partial = partials[j];
#pragma unroll
      for (int i = 0; i < 4; ++i) dots[kCorners == 8 ? j % 2 * 4 + i : i] += partial.of[i];
    }
  }

 private:
  Partial* memory_;
};

template <class T, int N, class Layout>
struct BackwardShape {
  using Real = Compute<T>;
  static constexpr int kQueries = Layout::kRows;                                       // of a warp
  static constexpr int kPoints = kWarpSize / kQueries < 8 ? kWarpSize / kQueries : 8;  // of a step
  using Table = CornerTable<Real, N, kQueries, kPoints>;
  using Dots = PartialDots<Real, N, Layout, kPoints>;
};

// Row of the value's gradient at each corner += weight * grad. Corners of weight zero are left out:
// additions to memory are the bottleneck of this kernel.
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

// Writes the gradients of sample (l, k) of a query-head and adds to its sums. `at_query_head`
// counts query-heads as the gradients do, [B, Q, M].
template <class T, int N>
__device__ __forceinline__ void finish_sample(const KernelParams& params,
                                              const QueryHead<T, N>& query_head,
                                              int64_t at_query_head, int l, int k,
                                              Compute<T> (&dots)[1 << N],
                                              QueryHeadSums<Compute<T>, N>& sums) {
  using Real = Compute<T>;
  const Problem& p = params.problem;
  // Read again: kept in registers, it would push the loads of the rows out of them.
  Real pixel[N];
  query_head.read_pixels(params, k, pixel);
  const auto sample = sample_at<Real, N>(params, pixel, query_head.attention(params, k), l);
  Real slope[N];
  interpolate<N>(sample.axes, dots, slope);
  const int64_t at = at_query_head * p.P + params.first_point[l] + k;
  if (p.grad_scores.data) static_cast<Real*>(p.grad_scores.data)[at] = dots[0];
  sums.attention += sample.attention * dots[0];
#pragma unroll
  for (int n = 0; n < N; ++n) slope[n] *= sample.attention;
  pass_on_pixel_grads<T, N>(params, query_head, at, l, k, slope, sums);
}

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<Compute<T>>)
    backward_kernel(const __grid_constant__ KernelParams params, TilePartition tiles) {
  wait_for_launch_before();
  using Real = Compute<T>;
  using Shape = BackwardShape<T, N, Layout>;
  using Table = typename Shape::Table;
  using Dots = typename Shape::Dots;
  constexpr int kQueries = Shape::kQueries, kPoints = Shape::kPoints;
  STDEFORM_SHARED(uint4, corner_memory, kWarps * Table::kSize);
  STDEFORM_SHARED(typename Dots::Partial, dot_memory, kWarps * Dots::kSize);
  constexpr int kDotWords = Dots::kSize * int(sizeof(typename Dots::Partial) / sizeof(Real));
  static_assert(kDotWords >= 2 * N * kWarpSize, "add_splits uses the memory of the dot products");

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(corner_memory + warp * Table::kSize);
  Dots partials(dot_memory + warp * Dots::kSize);
  const SamplingLane<kQueries, kPoints> sampling(lane);
  const int qh = lane / Layout::kLanes;  // the query-head that the lane holds channels of
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  const bool needs_sample_grads =
      p.grad_scores.data || p.grad_positions.data || p.grad_reference.data;
  const int64_t grad_stride = p.M * p.D;  // from cell to cell

  const auto add_up_splits = [&](const Tile& tile, auto& numbers) {
    if (tile.splits == 1) return;
    add_splits<kWarps>(reinterpret_cast<Real*>(dot_memory), kDotWords, tile, warp, lane, numbers);
  };

  // 1 schedule
  for_each_tile<kQueries, kWarps>(params, tiles, warp, [&](const Tile& tile) {
    const int b = tile.b, m = tile.m, first_query = tile.start;
    const bool is_sampler = sampling.in_use && first_query + sampling.qh < params.Q;
    const bool has_channels = qh < kQueries && first_query + qh < params.Q;
    const int sampled_query = is_sampler ? first_query + sampling.qh : 0;
    const int64_t at_query_head = (b * p.Q + sampled_query) * p.M + m;
    QueryHead<T, N> query_head;
    query_head.start(params, b, sampled_query, m);
    // 2 softmax
    if (params.from_offsets) find_softmax(params, sampling, is_sampler, query_head);
    const T* values = row_of<T>(p.value, b, 0, m);  // [S, D]
    Real* grad_values =                             // [S, D]
        static_cast<Real*>(p.grad_value.data) + b * p.S * grad_stride + m * p.D;
    const T* grad_row = row_of<T>(p.grad_out, b, has_channels ? first_query + qh : 0, m);  // [D]
    LoadedRow<T, Layout> loaded = {};
    if (Layout::kWhole && has_channels) loaded.load(grad_row + first_channel, params.D);
    Real grad[Layout::kVecsPerLane][Layout::kVecSize];
    loaded.widen_to(grad);

    QueryHeadSums<Real, N> sums;
    int batch = tile.split;  // of the warp's next samples, counted in the level
    for (int l = 0; l < params.L; ++l) {
      const T* cells = values + params.first_cell[l] * p.value.stride[1];
      Real* grad_cells = grad_values + params.first_cell[l] * grad_stride;
      if (is_sampler) query_head.go_to_level(params, l, l > 0);
      sums.start_level();
      const int points = params.num_points(l);
      for (; batch * kPoints < points; batch += tile.splits) {
        const int first = batch * kPoints;
        const int count = min(points - first, kPoints);
        const bool has_sample = is_sampler && sampling.point < count;
        // 3 sample
        if (has_sample) {
          const int k = first + sampling.point;
          Real pixel[N];
          query_head.read_pixels(params, k, pixel);
          const auto sample = sample_at<Real, N>(params, pixel, query_head.attention(params, k), l);
          table.at(sampling.qh, sampling.point) = find_corners(params, sample, l);
        }
        __syncwarp();
        for (int i = 0; i < count; ++i) {
          Real dots[1 << N] = {};
          const Corners<Real, N>& corners = table.at(has_channels ? qh : 0, i);
          if (has_channels && corners.cell != corners.kNone) {
            for (int channel = first_channel; channel - first_channel < params.D;
                 channel += Layout::kChannels) {
              const int left = params.D - channel;
              if (!Layout::kWhole) {
                loaded.load(grad_row + channel, left);
                loaded.widen_to(grad);
              }
              // 4 gather
              if (needs_sample_grads) {
                const CellRows<const T, Layout> rows(cells + channel, p.value.stride[1]);
                read_corners<T, Layout>(rows, left, corners,
                                        [&](int c, int v, const auto& numbers) {
#pragma unroll
                                          for (int j = 0; j < Layout::kVecSize; ++j)
                                            dots[c] += grad[v][j] * numbers[j];
                                        });
              }
              // 5 scatter
              if (p.grad_value.data) {
                const CellRows<Real, Layout> rows(grad_cells + channel, grad_stride);
                scatter<Real, N, Layout>(rows, left, corners, grad);
              }
              if (Layout::kWhole) break;
            }
          }
          if (needs_sample_grads) partials.put(lane, qh, i, has_channels, dots);
        }
        __syncwarp();
        // 6 finish samples
        if (needs_sample_grads && has_sample) {
          Real dots[1 << N];
          partials.add_up(sampling.qh, sampling.point, dots);
          finish_sample<T, N>(params, query_head, at_query_head, l, first + sampling.point, dots,
                              sums);
        }
      }
      batch -= (points - 1) / kPoints + 1;
      // 7 finish query-heads
      if (p.grad_reference.data) {
        sums.add_up_level(sampling);
        add_up_splits(tile, sums.reference);
        if (is_sampler && tile.split == 0) {
          write_reference_grads<Real, N>(params, sampling, at_query_head, l, sums);
        }
      }
    }
    if (!p.grad_scores.data || !params.from_offsets) return;
    Real sum[1] = {sampling.reduce(sums.attention, [](Real a, Real b) { return a + b; })};
    add_up_splits(tile, sum);
    if (is_sampler) {
      differentiate_softmax(params, query_head, sampling, at_query_head, sum[0], tile.split,
                            tile.splits);
    }
  });
}

}  // namespace stdeform::cuda
