// Sums over the warps that share the samples of a tile.
#pragma once

#include "cuda/tiles.cuh"

namespace stdeform::cuda {

// Replaces each of a lane's `numbers` by its sum over the splits of the tile, added in the order of
// the splits, so that all of them hold the same sums. The warps exchange numbers through shared
// memory that is free meanwhile, `words_per_warp` for each. Called by all threads of the block.
template <int warps, class Real, int count>
__device__ __forceinline__ void add_splits(Real* memory, int words_per_warp, const Tile& tile,
                                           int warp, int lane, Real (&numbers)[count]) {
  Real* const of_lane = memory + warp * words_per_warp + lane;
  const Real* const first = of_lane - tile.split * words_per_warp;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) of_lane[i * kWarpSize] = numbers[i];
  __syncthreads();
  if (warp - tile.split + tile.splits <= warps) {  // otherwise there are too few warps for a tile
#pragma unroll
    for (int i = 0; i < count; ++i) numbers[i] = first[i * kWarpSize];
    for (int split = 1; split < tile.splits; ++split) {
#pragma unroll
      for (int i = 0; i < count; ++i) numbers[i] += first[split * words_per_warp + i * kWarpSize];
    }
  }
  __syncthreads();
}

}  // namespace stdeform::cuda
