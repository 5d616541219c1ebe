// One call as the kernels get it: by value, with the sizes of the levels in it, so that no kernel
// waits for a copy.
#pragma once

#include "../problem.h"

namespace stdeform::cuda {

constexpr int kMaxLevels = 64;

// How work is ordered and shared out; results do not depend on it but for the order of sums.
struct Order {
  bool in_bricks = false;        // queries are the cells of the levels
  int32_t brick[kMaxAxes] = {};  // cells along x, y, t
  int32_t parts = 1;             // warps that share the samples of a tile
};

struct Device {
  int multiprocessors;
};

struct Call {
  Problem problem;
  Order order;
  int32_t B, Q, M, D, L, K;            // as in the problem; products of them may pass 32 bits
  int32_t size[kMaxLevels][kMaxAxes];  // of each level along x, y, t; images have one frame
  int32_t first_cell[kMaxLevels];      // of each level, in 0..S
};

}  // namespace stdeform::cuda
