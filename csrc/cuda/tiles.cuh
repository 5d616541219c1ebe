// Which tiles a warp works on. A row is one (batch row, head, query); a tile is as many rows as a
// warp works on at a time, of one head, at neighbouring places of the order. A block has a run of
// tiles to itself and its warps take turns in it, so that what they read at the same time lies
// close together, whichever multiprocessor the block is on.
#pragma once

#include <algorithm>

#include "compat.cuh"
#include "order.h"

namespace stdeform::cuda {

// As many blocks as the device has room for, but none without a tile.
inline dim3 grid_of(const Call& call, int rows_per_tile, int blocks) {
  return dim3(std::min<int64_t>(blocks, tiles_of_all(call, rows_per_tile)));
}

// A tile, and which part of the samples of its rows the warp takes.
struct Tile {
  int b, m;
  int32_t place;  // of the first row in the order; past the last query where there is no tile
  int part;
};

// Calls visit(tile) as often on every warp of the block.
template <int rows_per_tile, int warps, class F>
__device__ __forceinline__ void for_each_tile(const Call& call, int warp, F visit) {
  const int parts = call.order.parts, tiles_of_turn = warps / parts;
  const int32_t of_head = tiles_of_head(call, rows_per_tile);
  const auto range = tiles_of_block(tiles_of_all(call, rows_per_tile), blockIdx.x, gridDim.x);
  int64_t tile = range.first + warp / parts;
  const int64_t bm = tile / of_head;
  int32_t in_head = int32_t(tile % of_head);
  int b = int(bm / call.M), m = int(bm % call.M);
  for (int64_t turn = range.first; turn < range.last; turn += tiles_of_turn) {
    visit(Tile{b, m, tile < range.last ? in_head * rows_per_tile : call.Q, warp % parts});
    tile += tiles_of_turn;
    in_head += tiles_of_turn;
    while (in_head >= of_head) {
      in_head -= of_head;
      if (++m == call.M) m = 0, ++b;
    }
  }
}

}  // namespace stdeform::cuda
