// In which order the forward works, and how many warps share a tile. Host code.
#pragma once

#include <stdexcept>
#include <string>

#include "layout.cuh"
#include "order.h"
#include "tuning.h"

namespace stdeform::cuda {

// Cells of a brick along x, y, t: benchmarks/cache_order.py has what others would read.
constexpr int32_t kBrick[kMaxAxes] = {5, 5, 9};
constexpr int32_t kImageBrick[kMaxAxes] = {16, 16, 1};

inline Order choose_order(const Call& call, int rows_per_tile, const Device& device,
                          const Tuning& tuning) {
  Order order;
  // Self-attention: as many queries as cells. If they are others, only speed suffers.
  const bool on_grid = call.problem.Q == call.problem.S;
  order.in_bricks = on_grid && tuning.forward_bricks != 0;
  for (int n = 0; n < kMaxAxes; ++n) {
    order.brick[n] = call.problem.N == 3 ? kBrick[n] : kImageBrick[n];
    if (tuning.forward_bricks > 0) order.brick[n] = int32_t(tuning.forward_bricks);
  }
  // Parts double as long as the device has a warp for each, and each has samples to read.
  if (tuning.forward_parts > 0) {
    if (kForwardWarps % tuning.forward_parts) {
      throw std::invalid_argument("forward_parts must divide " + std::to_string(kForwardWarps) +
                                  ", got " + std::to_string(tuning.forward_parts));
    }
    order.parts = int32_t(tuning.forward_parts);
  } else {
    const int64_t tiles = tiles_of_all(call, rows_per_tile);
    const int64_t warps = int64_t(device.multiprocessors) * kForwardWarps;
    const int at_once = kWarpSize / rows_per_tile;  // samples of a row that a warp reads
    const int64_t reads = int64_t(call.L) * ((call.K - 1) / at_once + 1);
    for (const int parts : {2, 4}) {
      if (tiles * parts <= warps && parts <= reads) order.parts = parts;
    }
  }
  return order;
}

}  // namespace stdeform::cuda
