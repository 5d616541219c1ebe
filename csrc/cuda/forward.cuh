// The forward kernel. One block per multiprocessor; a warp works on one tile: neighbouring queries
// of one head of one batch element. Its lanes have two roles: to sample, and to gather channels.
//
//   1 schedule  which tile, which split of its samples          for_each_tile     tiles.cuh
//   2 softmax   largest of the P logits of a query-head         find_max_logit    lanes/samples.cuh
//   3 sample    a lane per (query-head, point): position ->     read_pixels       lanes/samples.cuh
//               2^N corner cells and weights, to shared memory  find_corners      lanes/samples.cuh
//   4 gather    a lane per (query-head, 8 channels):            read_corners      lanes/rows.cuh
//               sum += weight * value[cell], 16 bytes a load    multiply_add      lanes/vec.cuh
//   5 combine   sum of the softmax; if warps share a tile,      add_splits        splits.cuh
//               their sums in the order of the splits
//   6 store     divide, round once, a vector at a time          store_vec         lanes/vec.cuh
//
// Shared memory: the corner table of each warp, used again by 5; and the QueryHeads, since a warp
// that gathers needs all of its registers.
#pragma once

#include "cuda/lanes/rows.cuh"
#include "cuda/splits.cuh"

namespace stdeform::cuda {

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 1)
    forward_kernel(const __grid_constant__ KernelParams params, TilePartition tiles) {
  wait_for_launch_before();
  using Real = Compute<T>;
  constexpr int kQueries = Layout::kRows, kPoints = kWarpSize / kQueries;  // of a warp, of a step
  using Table = CornerTable<Real, N, kQueries, kPoints>;
  constexpr int kChannels = Layout::kVecsPerLane * Layout::kVecSize;  // of a lane
  // Of a warp, in uint4: for its corner table, or for the sums of its split.
  constexpr int kSplitSize = (kChannels + 1) * kWarpSize * int(sizeof(Real)) / int(sizeof(uint4));
  constexpr int kSize = Table::kSize > kSplitSize ? Table::kSize : kSplitSize;
  constexpr int kWords = kSize * int(sizeof(uint4) / sizeof(Real));
  using Head = QueryHead<T, N>;
  STDEFORM_SHARED(uint4, memory, kForwardWarps * kSize);
  STDEFORM_SHARED(Head, query_heads, kForwardWarps * kQueries);

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(memory + warp * kSize);
  const SamplingLane<kQueries, kPoints> sampling(lane);
  const int qh = lane / Layout::kLanes;  // the query-head that the lane gathers channels of
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  Head& query_head = query_heads[warp * kQueries + sampling.qh];  // that the lane samples
  TileQueries<kQueries> queries;

  // 1 schedule
  for_each_tile<kQueries, kForwardWarps>(params, tiles, warp, [&](const Tile& tile) {
    const bool is_sampler = sampling.in_use && tile.start + sampling.qh < params.Q;
    const bool has_channels = qh < kQueries && tile.start + qh < params.Q;
    queries.next(params, tile, lane);
    // 2 softmax
    {
      Head head;
      head.start(params, tile.b, queries.query(sampling.qh), tile.m);
      if (params.from_offsets) head.max_logit = find_max_logit(params, sampling, is_sampler, head);
      if (is_sampler) head.go_to_level(params, 0, 0);
      __syncwarp();
      if (is_sampler && sampling.point == 0) query_head = head;
    }
    const T* values = row_of<T>(p.value, tile.b, 0, tile.m);  // [S, D]
    T* out =                                                  // [D]
        row_of<T>(p.out, tile.b, uint32_t(queries.query(qh < kQueries ? qh : 0)), tile.m);

    for (int channel = first_channel; channel - first_channel < params.D;
         channel += Layout::kChannels) {
      Real sums[kChannels + 1] = {};  // of the lane's channels, and of the softmax
      Real softmax_sum = 0;           // over the samples that this lane has read
      int batch = tile.split;         // of the warp's next samples, counted in the level
      for (int l = 0; l < params.L; ++l) {
        if (l > 0 || channel > first_channel) {
          __syncwarp();
          if (is_sampler && sampling.point == 0) {
            Head head = query_head;
            head.go_to_level(params, l, l > 0 ? 1 : 1 - params.L);
            query_head = head;
          }
        }
        const CellRows<const T, Layout> rows(
            values + params.first_cell[l] * p.value.stride[1] + channel, p.value.stride[1]);
        // Not kept in a register: the widest rows would spill one.
        for (; batch * kPoints < params.num_points(l); batch += tile.splits) {
          const int first = batch * kPoints;
          const int count = min(params.num_points(l) - first, kPoints);
          __syncwarp();
          // 3 sample
          if (is_sampler && sampling.point < count) {
            Real pixel[N];
            query_head.read_pixels(params, first + sampling.point, pixel);
            const Real attention = query_head.unnormalized(params, first + sampling.point);
            softmax_sum += attention;
            const auto sample = sample_at<Real, N>(params, pixel, attention, l);
            table.at(sampling.qh, sampling.point) = find_corners(params, sample, l);
          }
          __syncwarp();
          // 4 gather
          if (!has_channels) continue;
          const Corners<Real, N>* corners = &table.at(qh, 0);
#pragma unroll 2
          for (int i = 0; i < count; ++i, ++corners) {
            if (corners->cell == corners->kNone) continue;
            read_corners<T, Layout>(
                rows, params.D - channel, *corners, [&](int c, int v, const auto& numbers) {
                  multiply_add(corners->weight[c], numbers, &sums[v * Layout::kVecSize]);
                });
          }
        }
        batch -= (params.num_points(l) - 1) / kPoints + 1;
      }
      // 5 combine
      if (params.from_offsets) {
        softmax_sum = sampling.reduce_to_first(softmax_sum, [](Real a, Real b) { return a + b; });
        sums[kChannels] = __shfl_sync(~0u, softmax_sum, qh < kQueries ? qh * kPoints : 0);
      }
      if (tile.splits > 1) {
        add_splits<kForwardWarps>(reinterpret_cast<Real*>(memory), kWords, tile, warp, lane, sums);
      }
      // 6 store
      if (has_channels && tile.split == 0) {
        const Real scale = params.from_offsets ? Real(1) / sums[kChannels] : Real(1);
#pragma unroll
        for (int i = 0; i < Layout::kVecsPerLane; ++i) {
          const int at = channel + i * Layout::kStep;
          if (!Layout::kWhole && at >= params.D) continue;
          Real vec[Layout::kVecSize];
#pragma unroll
          for (int j = 0; j < Layout::kVecSize; ++j) {
            vec[j] = sums[i * Layout::kVecSize + j] * scale;
          }
          store_vec(vec, out + at);
        }
      }
      if (Layout::kWhole) break;
    }
  });
}

}  // namespace stdeform::cuda
