// The forward kernel. A warp works on neighbouring queries of one batch row and head, so that
// what they read lies close together; blocks next to each other work on the same head.
#pragma once

#include "rows.cuh"
#include "tiles.cuh"

namespace stdeform::cuda {

template <class T, int N, class Layout>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    forward_kernel(const __grid_constant__ Call call) {
  using Real = Compute<T>;
  constexpr int kRows = Layout::kRows, kPoints = kWarpSize / kRows;
  using Table = CornerTable<Real, N, kRows, kPoints>;
  STDEFORM_SHARED(uint4, memory, kWarps * Table::kSize);

  const Problem& p = call.problem;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const Table table(memory + warp * Table::kSize);
  const SamplingLane<kRows, kPoints> sampling(lane);
  const int row = lane / Layout::kLanes;  // whose channels the lane holds
  const int first_channel = lane % Layout::kLanes * Layout::kGroup;

  for_each_tile<kRows>(call, warp, [&](int b, int m, int first_query) {
    const bool samples = sampling.in_use && first_query + sampling.row < call.Q;
    const bool gathers = row < kRows && first_query + row < call.Q;
    SampledRow<T> sampled(p, b, samples ? first_query + sampling.row : 0, m);
    if (p.reference.data) find_softmax<T>(call, sampling, samples, sampled);
    const T* values =
        static_cast<const T*>(p.value.data) + b * p.value.stride[0] + m * p.value.stride[2];

    for (int channel = first_channel; channel - first_channel < call.D;
         channel += Layout::kChannels) {
      Real sums[Layout::kGroups][Layout::kGroup] = {};
      for (int l = 0; l < call.L; ++l) {
        const CellRows<const T, Layout> rows(
            values + call.first_cell[l] * p.value.stride[1] + channel, p.value.stride[1]);
        for (int first = 0; first < call.K; first += kPoints) {
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
#pragma unroll
                                      for (int j = 0; j < Layout::kGroup; ++j) {
                                        sums[run][j] += corners.weight[c] * numbers[j];
                                      }
                                    });
          }
        }
      }
      if (!gathers) continue;
      T* out = static_cast<T*>(p.out.data) + b * p.out.stride[0] +
               (first_query + row) * p.out.stride[1] + m * p.out.stride[2];
#pragma unroll
      for (int i = 0; i < Layout::kGroups; ++i) {
        const int at = channel + i * Layout::kStep;
        if (Layout::kWhole || at < call.D) store_run(sums[i], out + at);
      }
      if (Layout::kWhole) break;
    }
  });
}

}  // namespace stdeform::cuda
