// In which order queries are worked on: plain, or brick by brick. Index arithmetic alone, for the
// kernels and for whoever wants to know what they read when.
#pragma once

#include "core/macros.h"
#include "cuda/params.h"

namespace stdeform::cuda {

// The query at a place of the order. Where queries are the cells of the levels, neighbours in all
// axes follow each other: a level is cut into bricks of params.order.brick cells, those at its ends
// smaller, in the order of their first cells.
STDEFORM_INLINE int32_t query_at(const KernelParams& params, int32_t place) {
  const Order& order = params.order;
  if (!order.in_bricks) return place;
  int l = 0;
  while (l + 1 < params.L && place >= params.first_cell[l + 1]) ++l;
  const auto smaller = [](int32_t a, int32_t b) { return a < b ? a : b; };
  const int32_t* size = params.size[l];
  // Frames, rows and columns of the brick, one after the other; before each lie whole bricks.
  int32_t rest = place - params.first_cell[l];
  const int32_t t = rest / (size[0] * size[1]) / order.brick[2] * order.brick[2];
  const int32_t frames = smaller(order.brick[2], size[2] - t);
  rest -= t * size[0] * size[1];
  const int32_t y = rest / (size[0] * frames) / order.brick[1] * order.brick[1];
  const int32_t rows = smaller(order.brick[1], size[1] - y);
  rest -= y * size[0] * frames;
  const int32_t x = rest / (rows * frames) / order.brick[0] * order.brick[0];
  const int32_t columns = smaller(order.brick[0], size[0] - x);
  rest -= x * rows * frames;
  const int32_t in_frame = rest / columns;
  return params.first_cell[l] + ((t + in_frame / rows) * size[1] + y + in_frame % rows) * size[0] +
         x + rest % columns;
}

STDEFORM_INLINE int32_t tiles_of_head(const KernelParams& params, int rows_per_tile) {
  return 1 + (params.Q - 1) / rows_per_tile;
}
STDEFORM_INLINE int64_t tiles_of_all(const KernelParams& params, int rows_per_tile) {
  return int64_t(params.B) * params.M * tiles_of_head(params, rows_per_tile);
}

// The tiles of all heads, shared out among blocks: some have one more than the others.
struct TileShares {
  int64_t of_block;  // at least
  int64_t with_more;

  TileShares() = default;
  TileShares(int64_t tiles, int64_t blocks) : of_block(tiles / blocks), with_more(tiles % blocks) {}

  STDEFORM_INLINE int64_t first(int64_t block) const {
    return block * of_block + (block < with_more ? block : with_more);
  }
  STDEFORM_INLINE int64_t number(int64_t block) const { return of_block + (block < with_more); }
};

}  // namespace stdeform::cuda
