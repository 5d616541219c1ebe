// In which order kernels work, and how many warps share a tile. Host code.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/lanes/layout.cuh"
#include "cuda/schedule.h"
#include "cuda/tuning.h"

namespace stdeform::cuda {

// Cells of a brick along x, y, t: benchmarks/costs/cache_order.py has what others would read.
constexpr int32_t kBrick[kMaxAxes] = {5, 5, 9};
constexpr int32_t kImageBrick[kMaxAxes] = {16, 16, 1};

// What a tile takes of each of its warps besides its steps: two thirds of a step in the forward, by
// executed instructions, and the warps wait for each other.
constexpr int64_t kStepsOfTile = 1;

// Fills in how many of a block's warps share a tile when so many tiles are left, each of which has
// `steps` steps of samples: as many as are done with all of them first, rather few.
inline void choose_splits(int64_t steps, int warps, Order& order) {
  int64_t fewest[kForwardWarps + 1] = {};  // steps until so many tiles are done
  for (int left = 1; left < warps; ++left) {
    for (int splits = 1; splits <= warps && splits <= steps; ++splits) {
      const int after = left - warps / splits;
      const int64_t taken = (steps - 1) / splits + 1 + kStepsOfTile + fewest[after > 0 ? after : 0];
      if (splits > 1 && taken >= fewest[left]) continue;
      order.splits[left] = uint8_t(splits);
      fewest[left] = taken;
    }
  }
}

// The order of a kernel of so many warps to a block; `samples_at_once` are those of a row that a
// warp works on in a step.
inline Order choose_order(const KernelParams& params, int warps, int samples_at_once,
                          int64_t forced_splits) {
  if (forced_splits > warps) {
    throw std::invalid_argument("at most " + std::to_string(warps) +
                                " warps can share a tile, got " + std::to_string(forced_splits));
  }
  Order order;
  const int64_t steps = int64_t(params.L) * ((params.K - 1) / samples_at_once + 1);
  std::fill_n(order.splits, kForwardWarps + 1, uint8_t(forced_splits > 0 ? forced_splits : 1));
  if (forced_splits <= 0) choose_splits(steps, warps, order);
  return order;
}

inline Order choose_forward_order(const KernelParams& params, int rows_per_tile,
                                  const Tuning& tuning) {
  Order order =
      choose_order(params, kForwardWarps, kWarpSize / rows_per_tile, tuning.forward_splits);
  // Self-attention: as many queries as cells. If they are others, only speed suffers.
  const bool on_grid = params.problem.Q == params.problem.S;
  order.in_bricks = on_grid && tuning.forward_bricks != 0;
  for (int n = 0; n < kMaxAxes; ++n) {
    order.brick[n] = params.problem.N == 3 ? kBrick[n] : kImageBrick[n];
    if (tuning.forward_bricks > 0) order.brick[n] = int32_t(tuning.forward_bricks);
  }
  return order;
}

}  // namespace stdeform::cuda
