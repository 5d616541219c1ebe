// In which order queries are processed, plain or brick by brick, and how many warps share a tile.
// Index arithmetic only, without CUDA headers: shared by the kernels and the host code that
// launches them.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/macros.h"
#include "cuda/params.h"

namespace stdeform::cuda {

// Cells of a brick along x, y, t; docs/internals/cuda-cache.md has what others would read.
constexpr int32_t kBrick[kMaxAxes] = {5, 5, 9};
constexpr int32_t kImageBrick[kMaxAxes] = {16, 16, 1};

// The query at an index of the schedule. Where queries are the cells of the levels, neighbours
// along all axes are close in the schedule: a level is cut into bricks of params.schedule.brick
// cells, those at its ends smaller, and bricks are processed in the order of their first cells.
STDEFORM_INLINE int32_t query_at(const KernelParams& params, int32_t index) {
  const Schedule& schedule = params.schedule;
  if (!schedule.in_bricks) return index;
  int l = 0;
  while (l + 1 < params.L && index >= params.first_cell[l + 1]) ++l;
  const auto smaller = [](int32_t a, int32_t b) { return a < b ? a : b; };
  const int32_t* size = params.size[l];
  // Frames, rows and columns of the brick, one after the other; before each are whole bricks.
  int32_t rest = index - params.first_cell[l];
  const int32_t t = rest / (size[0] * size[1]) / schedule.brick[2] * schedule.brick[2];
  const int32_t frames = smaller(schedule.brick[2], size[2] - t);
  rest -= t * size[0] * size[1];
  const int32_t y = rest / (size[0] * frames) / schedule.brick[1] * schedule.brick[1];
  const int32_t rows = smaller(schedule.brick[1], size[1] - y);
  rest -= y * size[0] * frames;
  const int32_t x = rest / (rows * frames) / schedule.brick[0] * schedule.brick[0];
  const int32_t columns = smaller(schedule.brick[0], size[0] - x);
  rest -= x * rows * frames;
  const int32_t in_frame = rest / columns;
  return params.first_cell[l] + ((t + in_frame / rows) * size[1] + y + in_frame % rows) * size[0] +
         x + rest % columns;
}

STDEFORM_INLINE int32_t tiles_of_head(const KernelParams& params, int queries_per_tile) {
  return 1 + (params.Q - 1) / queries_per_tile;
}
STDEFORM_INLINE int64_t tiles_of_all(const KernelParams& params, int queries_per_tile) {
  return int64_t(params.B) * params.M * tiles_of_head(params, queries_per_tile);
}

// The tiles of all heads, divided among blocks; the first `remainder` blocks have one more.
struct TilePartition {
  int64_t per_block;
  int64_t remainder;

  TilePartition() = default;
  TilePartition(int64_t tiles, int64_t blocks)
      : per_block(tiles / blocks), remainder(tiles % blocks) {}

  STDEFORM_INLINE int64_t first(int64_t block) const {
    return block * per_block + (block < remainder ? block : remainder);
  }
  STDEFORM_INLINE int64_t count(int64_t block) const { return per_block + (block < remainder); }
};

// The cost of a tile for each of its warps, in steps, besides its steps: counted as two thirds of a
// step in the forward, and the warps wait for each other.
constexpr int64_t kStepsOfTile = 1;

// Fills in how many of a block's warps share a tile, for each number of tiles left, if a tile has
// `steps` steps of samples: the number with which all are done first, and the smaller of two equal
// ones.
inline void choose_splits(int64_t steps, int warps, Schedule& schedule) {
  int64_t fewest[kForwardWarps + 1] = {};  // steps until that many tiles are done
  for (int left = 1; left < warps; ++left) {
    for (int splits = 1; splits <= warps && splits <= steps; ++splits) {
      const int after = left - warps / splits;
      const int64_t taken = (steps - 1) / splits + 1 + kStepsOfTile + fewest[after > 0 ? after : 0];
      if (splits > 1 && taken >= fewest[left]) continue;
      schedule.splits[left] = uint8_t(splits);
      fewest[left] = taken;
    }
  }
}

// The schedule of a kernel with `warps` warps per block, each of which processes `samples_per_step`
// samples of a query and head in a step.
inline Schedule choose_schedule(const KernelParams& params, int warps, int samples_per_step,
                                int64_t forced_splits) {
  if (forced_splits > warps) {
    throw std::invalid_argument("at most " + std::to_string(warps) +
                                " warps can share a tile, got " + std::to_string(forced_splits));
  }
  Schedule schedule;
  int64_t steps = 0;
  for (int l = 0; l < params.L; ++l) steps += (params.num_points(l) - 1) / samples_per_step + 1;
  std::fill_n(schedule.splits, kForwardWarps + 1, uint8_t(forced_splits > 0 ? forced_splits : 1));
  if (forced_splits <= 0) choose_splits(steps, warps, schedule);
  return schedule;
}

inline Schedule choose_forward_schedule(const KernelParams& params, int queries_per_tile,
                                        const Tuning& tuning) {
  Schedule schedule =
      choose_schedule(params, kForwardWarps, kWarpSize / queries_per_tile, tuning.forward_splits);
  // Self-attention has as many queries as cells. If these queries are others, it costs only speed.
  const bool on_grid = params.problem.Q == params.problem.S;
  schedule.in_bricks = on_grid && tuning.forward_bricks != 0;
  for (int n = 0; n < kMaxAxes; ++n) {
    schedule.brick[n] = params.problem.N == 3 ? kBrick[n] : kImageBrick[n];
    if (tuning.forward_bricks > 0) schedule.brick[n] = int32_t(tuning.forward_bricks);
  }
  return schedule;
}

}  // namespace stdeform::cuda
