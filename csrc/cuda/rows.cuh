// The rows of channels at a sample's corners.
#pragma once

#include "samples.cuh"

namespace stdeform::cuda {

// Calls visit(corner, run, numbers) for each run of channels that the lane holds, at each corner;
// `channels_left` counts from the lane's first channel on.
template <class T, class Layout, class Real, int N, class F>
__device__ __forceinline__ void read_corners(CellRows<const T, Layout> rows, int channels_left,
                                             const Corners<Real, N>& corners, F visit) {
  constexpr int kCorners = Corners<Real, N>::kCount;
  uint32_t cell[kCorners];
  corners.cells(cell);
#pragma unroll
  for (int c = 0; c < kCorners; ++c) {
    const T* row = rows[cell[c]];
#pragma unroll
    for (int i = 0; i < Layout::kGroups; ++i) {
      if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
      Real numbers[Layout::kGroup];
      widen<T>(load_run<Layout::kGroup>(row + i * Layout::kStep), numbers);
      visit(c, i, numbers);
    }
  }
}

}  // namespace stdeform::cuda
