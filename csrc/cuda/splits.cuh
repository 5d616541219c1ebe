// Sums over the warps that share the samples of a tile.
#pragma once

#include "cuda/tiles.cuh"

namespace stdeform::cuda {

// Adds up numbers of which each warp has found its split, in the order of the splits: `mine` is the
// same afterwards on the same lane of each of them. They meet in shared memory that nobody else
// uses meanwhile, `words_per_warp` for each. Called by all threads of the block.
template <int warps, class Real, int count>
__device__ __forceinline__ void add_splits(Real* memory, int words_per_warp, const Tile& tile,
                                           int warp, int lane, Real (&mine)[count]) {
  Real* const own = memory + warp * words_per_warp + lane;
  const Real* const first = own - tile.split * words_per_warp;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) own[i * kWarpSize] = mine[i];
  __syncthreads();
  if (warp - tile.split + tile.splits <= warps) {  // otherwise there are too few warps for a tile
#pragma unroll
    for (int i = 0; i < count; ++i) mine[i] = first[i * kWarpSize];
    for (int split = 1; split < tile.splits; ++split) {
#pragma unroll
      for (int i = 0; i < count; ++i) mine[i] += first[split * words_per_warp + i * kWarpSize];
    }
  }
  __syncthreads();
}

}  // namespace stdeform::cuda
