// The forward kernel. A block has a multiprocessor to itself and works on neighbouring queries of
// one head after the other, so that what its warps read is in the cache.
#pragma once

#include "cuda/lanes/rows.cuh"
#include "cuda/splits.cuh"

namespace stdeform::cuda {

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 1)
    forward_kernel(const __grid_constant__ KernelParams params, TileShares tiles) {
  wait_for_launch_before();
  using Real = Compute<T>;
  constexpr int kRows = Layout::kRows, kPoints = kWarpSize / kRows;
  using Table = CornerTable<Real, N, kRows, kPoints>;
  constexpr int kNumbers =
      Layout::kVecsPerLane * Layout::kVecSize;  // of channels that a lane holds
  // Of a warp: for its corner table, where splits of a tile meet too.
  constexpr int kSplitUnits = (kNumbers + 1) * kWarpSize * int(sizeof(Real)) / int(sizeof(uint4));
  constexpr int kUnits = Table::kSize > kSplitUnits ? Table::kSize : kSplitUnits;
  constexpr int kWords = kUnits * int(sizeof(uint4) / sizeof(Real));
  using Row = SampledRow<T, N>;
  STDEFORM_SHARED(uint4, memory, kForwardWarps * kUnits);
  // Kept there while a warp gathers, which needs all of its registers.
  STDEFORM_SHARED(Row, row_memory, kForwardWarps * kRows);

  const Problem& p = params.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(memory + warp * kUnits);
  const SamplingLane<kRows, kPoints> sampling(lane);
  const int row = lane / Layout::kLanes;  // whose channels the lane holds
  const int first_channel = lane % Layout::kLanes * Layout::kVecSize;
  Row& sampled = row_memory[warp * kRows + sampling.row];
  TileQueries<kRows> queries;
  const int batches = (params.K - 1) / kPoints + 1;  // of a level

  for_each_tile<kRows, kForwardWarps>(params, tiles, warp, [&](const Tile& tile) {
    const bool samples = sampling.in_use && tile.start + sampling.row < params.Q;
    const bool gathers = row < kRows && tile.start + row < params.Q;
    queries.next(params, tile, lane);
    {
      Row mine;
      mine.start(params, tile.b, queries.of_row(sampling.row), tile.m);
      if (params.from_offsets) mine.largest = find_largest(params, sampling, samples, mine);
      if (samples) mine.go_to_level(params, 0, 0);
      __syncwarp();
      if (samples && sampling.point == 0) sampled = mine;
    }
    const T* values = row_of<T>(p.value, tile.b, 0, tile.m);
    T* out = row_of<T>(p.out, tile.b, uint32_t(queries.of_row(row < kRows ? row : 0)), tile.m);

    for (int channel = first_channel; channel - first_channel < params.D;
         channel += Layout::kChannels) {
      Real sums[kNumbers + 1] = {};  // of the lane's channels, and the softmax's own
      Real softmax_sum = 0;          // over the samples that this lane has described
      int batch = tile.split;        // of the warp's next samples, counted in the level
      for (int l = 0; l < params.L; ++l) {
        if (l > 0 || channel > first_channel) {
          __syncwarp();
          if (samples && sampling.point == 0) {
            Row mine = sampled;
            mine.go_to_level(params, l, l > 0 ? 1 : 1 - params.L);
            sampled = mine;
          }
        }
        const CellRows<const T, Layout> rows(
            values + params.first_cell[l] * p.value.stride[1] + channel, p.value.stride[1]);
        for (; batch * kPoints < params.K; batch += tile.splits) {
          const int first = batch * kPoints;
          const int count = min(params.K - first, kPoints);
          __syncwarp();
          if (samples && sampling.point < count) {
            Real pixel[N];
            sampled.read_pixels(params, first + sampling.point, pixel);
            const Real attention = sampled.undivided(params, first + sampling.point);
            softmax_sum += attention;
            const auto sample = sample_at<Real, N>(params, pixel, attention, l);
            table.at(sampling.row, sampling.point) = find_corners(params, sample, l);
          }
          __syncwarp();
          if (!gathers) continue;
          const Corners<Real, N>* corners = &table.at(row, 0);
#pragma unroll 2
          for (int i = 0; i < count; ++i, ++corners) {
            if (corners->cell == corners->kNone) continue;
            read_corners<T, Layout>(
                rows, params.D - channel, *corners, [&](int c, int i, const auto& numbers) {
                  multiply_add(corners->weight[c], numbers, &sums[i * Layout::kVecSize]);
                });
          }
        }
        batch -= batches;
      }
      if (params.from_offsets) {
        softmax_sum = sampling.reduce_to_first(softmax_sum, [](Real a, Real b) { return a + b; });
        sums[kNumbers] = __shfl_sync(~0u, softmax_sum, row < kRows ? row * kPoints : 0);
      }
      if (tile.splits > 1) {
        add_splits<kForwardWarps>(reinterpret_cast<Real*>(memory), kWords, tile, warp, lane, sums);
      }
      if (gathers && tile.split == 0) {
        const Real scale = params.from_offsets ? Real(1) / sums[kNumbers] : Real(1);
#pragma unroll
        for (int i = 0; i < Layout::kVecsPerLane; ++i) {
          const int at = channel + i * Layout::kStep;
          if (!Layout::kWhole && at >= params.D) continue;
          Real vec[Layout::kVecSize];
#pragma unroll
          for (int j = 0; j < Layout::kVecSize; ++j)
            vec[j] = sums[i * Layout::kVecSize + j] * scale;
          store_vec(vec, out + at);
        }
      }
      if (Layout::kWhole) break;
    }
  });
}

}  // namespace stdeform::cuda
