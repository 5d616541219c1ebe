// The forward kernel. A block has a multiprocessor to itself and works on neighbouring queries of
// one head after the other, so that what its warps read is in the cache.
#pragma once

#include "rows.cuh"
#include "tiles.cuh"

namespace stdeform::cuda {

// Sums of a row's channels that warps have found from a part of its samples each, added up in the
// order of the parts; they meet in shared memory that nobody else uses meanwhile. Called by all
// threads of the block; `mine` is right afterwards on the lanes of part 0.
template <class Real, int groups, int group>
__device__ __forceinline__ void add_parts(Real* memory, int words_per_warp, int parts, int warp,
                                          int lane, Real (&mine)[groups][group]) {
  const auto word = [&](int warp, int i) -> Real& {
    return memory[warp * words_per_warp + i * kWarpSize + lane];
  };
  __syncthreads();
#pragma unroll
  for (int i = 0; i < groups * group; ++i) word(warp, i) = mine[i / group][i % group];
  __syncthreads();
  for (int part = 1; warp % parts == 0 && part < parts; ++part) {
#pragma unroll
    for (int i = 0; i < groups * group; ++i) mine[i / group][i % group] += word(warp + part, i);
  }
  __syncthreads();
}

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kForwardWarps* kWarpSize, 1)
    forward_kernel(const __grid_constant__ Call call) {
  using Real = Compute<T>;
  constexpr int kRows = Layout::kRows, kPoints = kWarpSize / kRows;
  using Table = CornerTable<Real, N, kRows, kPoints>;
  constexpr int kTableWords = Table::kSize * int(sizeof(uint4) / sizeof(Real));
  static_assert(kTableWords >= Layout::kGroups * Layout::kGroup * kWarpSize,
                "parts meet in the memory of the corner tables");
  STDEFORM_SHARED(uint4, memory, kForwardWarps * Table::kSize);

  const Problem& p = call.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(memory + warp * Table::kSize);
  const SamplingLane<kRows, kPoints> sampling(lane);
  const int row = lane / Layout::kLanes;  // whose channels the lane holds
  const int first_channel = lane % Layout::kLanes * Layout::kGroup;
  const int parts = call.order.parts;

  for_each_tile<kRows, kForwardWarps>(call, warp, [&](const Tile& tile) {
    const int b = tile.b, m = tile.m;
    const bool samples = sampling.in_use && tile.place + sampling.row < call.Q;
    const bool gathers = row < kRows && tile.place + row < call.Q;
    // Each row's query is found once.
    const int mine =
        lane < kRows && tile.place + lane < call.Q ? query_at(call, tile.place + lane) : 0;
    const int sampled_query = __shfl_sync(~0u, mine, sampling.row);
    const int gathered_query = __shfl_sync(~0u, mine, row < kRows ? row : 0);
    SampledRow<T> sampled(p, b, sampled_query, m);
    if (p.reference.data) find_softmax<T>(call, sampling, samples, sampled);
    const T* values =
        static_cast<const T*>(p.value.data) + b * p.value.stride[0] + m * p.value.stride[2];
    T* out = static_cast<T*>(p.out.data) + b * p.out.stride[0] + gathered_query * p.out.stride[1] +
             m * p.out.stride[2];

    for (int channel = first_channel; channel - first_channel < call.D;
         channel += Layout::kChannels) {
      Real sums[Layout::kGroups][Layout::kGroup] = {};
      int turn = 0;  // of the warps that share the tile
      for (int l = 0; l < call.L; ++l) {
        const CellRows<const T, Layout> rows(
            values + call.first_cell[l] * p.value.stride[1] + channel, p.value.stride[1]);
        for (int first = 0; first < call.K; first += kPoints) {
          if (turn++ % parts != tile.part) continue;
          const int count = min(call.K - first, kPoints);
          __syncwarp();
          if (samples && sampling.point < count) {
            const auto sample = read_sample<T, N>(call, sampled, l, first + sampling.point);
            table.at(sampling.row, sampling.point) = find_corners(call, sample, l);
          }
          __syncwarp();
          if (!gathers) continue;
#pragma unroll 1
          for (int i = 0; i < count; ++i) {
            const Corners<Real, N>& corners = table.at(row, i);
            if (corners.cell == corners.kNone) continue;
            read_corners<T, Layout>(rows, call.D - channel, corners,
                                    [&](int c, int run, const auto& numbers) {
                                      multiply_add(corners.weight[c], numbers, sums[run]);
                                    });
          }
        }
      }
      if (parts > 1) {
        add_parts(reinterpret_cast<Real*>(memory), kTableWords, parts, warp, lane, sums);
      }
      if (gathers && tile.part == 0) {
#pragma unroll
        for (int i = 0; i < Layout::kGroups; ++i) {
          const int at = channel + i * Layout::kStep;
          if (Layout::kWhole || at < call.D) store_run(sums[i], out + at);
        }
      }
      if (Layout::kWhole) break;
    }
  });
}

}  // namespace stdeform::cuda
