// Sums over the warps that share the samples of a tile.
#pragma once

#include "cuda/tiles.cuh"

namespace stdeform::cuda {

// Adds up numbers of which each warp has found its part, in the order of the parts: `mine` is the
// same afterwards on the same lane of each of them. They meet in shared memory that nobody else
// uses meanwhile, `words_per_warp` for each. Called by all threads of the block.
template <int warps, class Real, int count>
__device__ __forceinline__ void add_parts(Real* memory, int words_per_warp, const Tile& tile,
                                          int warp, int lane, Real (&mine)[count]) {
  Real* const own = memory + warp * words_per_warp + lane;
  const Real* const first = own - tile.part * words_per_warp;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) own[i * kWarpSize] = mine[i];
  __syncthreads();
  if (warp - tile.part + tile.parts <= warps) {  // otherwise there are too few warps for a tile
#pragma unroll
    for (int i = 0; i < count; ++i) mine[i] = first[i * kWarpSize];
    for (int part = 1; part < tile.parts; ++part) {
#pragma unroll
      for (int i = 0; i < count; ++i) mine[i] += first[part * words_per_warp + i * kWarpSize];
    }
  }
  __syncthreads();
}

}  // namespace stdeform::cuda
