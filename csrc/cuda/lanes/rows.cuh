// The rows of channels that lanes read: of grad_out, and of the value at the corners of a sample.
#pragma once

#include "cuda/lanes/samples.cuh"

namespace stdeform::cuda {

// The channels of a row that a lane holds, in the dtype of memory; zeros past the end.
template <class T, class Layout>
struct LoadedRow {
  Vec<T, Layout::kVecSize> vecs[Layout::kVecsPerLane];

  __device__ __forceinline__ void load(const T* row, int channels_left) {
#pragma unroll
    for (int i = 0; i < Layout::kVecsPerLane; ++i) {
      const bool in_range = Layout::kWhole || i * Layout::kStep < channels_left;
      vecs[i] = in_range ? load_vec<Layout::kVecSize>(row + i * Layout::kStep)
                         : Vec<T, Layout::kVecSize>{};
    }
  }
  __device__ __forceinline__ void widen_to(
      Compute<T> (&numbers)[Layout::kVecsPerLane][Layout::kVecSize]) const {
#pragma unroll
    for (int i = 0; i < Layout::kVecsPerLane; ++i) widen<T>(vecs[i], numbers[i]);
  }
};

// Calls visit(corner, i, numbers) for each vector i of channels that the lane holds, at each
// corner; `channels_left` counts from the lane's first channel on.
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
    for (int i = 0; i < Layout::kVecsPerLane; ++i) {
      if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
      Real numbers[Layout::kVecSize];
      widen<T>(load_vec<Layout::kVecSize>(row + i * Layout::kStep), numbers);
      visit(c, i, numbers);
    }
  }
}

}  // namespace stdeform::cuda
