// The order of work: which rows a warp computes, and when. A row is one (batch row, head, query); a
// tile is as many rows as a warp works on at a time.
#pragma once

#include <algorithm>

#include "call.h"
#include "compat.cuh"
#include "layout.cuh"

namespace stdeform::cuda {

// The grid: x runs over the tiles of one batch row and head, y over heads, z over batch rows. What
// is larger than a grid may be is walked in steps.
inline dim3 grid_of(const Call& call, int rows_per_tile) {
  const int rows = kWarps * rows_per_tile;
  return dim3(1 + (call.Q - 1) / rows, std::min(call.M, 0xffff), std::min(call.B, 0xffff));
}

// Calls visit(b, m, first query) for each tile of a warp; of the last ones some have no query.
template <int rows_per_tile, class F>
__device__ __forceinline__ void for_each_tile(const Call& call, int warp, F visit) {
  const int tile = blockIdx.x * kWarps + warp;
  for (int b = blockIdx.z; b < call.B; b += gridDim.z) {
    for (int m = blockIdx.y; m < call.M; m += gridDim.y) visit(b, m, tile * rows_per_tile);
  }
}

}  // namespace stdeform::cuda
