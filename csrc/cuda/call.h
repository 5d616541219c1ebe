// One call as the kernels get it: by value, with the sizes of the levels in it, so that no kernel
// waits for a copy.
#pragma once

#include "../problem.h"

namespace stdeform::cuda {

constexpr int kMaxLevels = 64;

struct Call {
  Problem problem;
  int32_t B, Q, M, D, L, K;            // as in the problem; products of them may pass 32 bits
  int32_t size[kMaxLevels][kMaxAxes];  // of each level along x, y, t
  int32_t first_cell[kMaxLevels];      // of each level, in 0..S
};

}  // namespace stdeform::cuda
