// The parameters of a kernel, passed by value with the sizes of the levels in them, so that no
// kernel waits for a copy.
#pragma once

#include "core/problem.h"

namespace stdeform::cuda {

constexpr int kMaxLevels = 64;

// Warps of a forward block, which has a multiprocessor of 64 Ki registers to itself: 128 registers
// for each thread, within which no kernel spills.
constexpr int kForwardWarps = 16;

// How work is ordered and shared out; results do not depend on it but for the order of sums.
struct Order {
  bool in_bricks = false;        // queries are the cells of the levels
  int32_t brick[kMaxAxes] = {};  // cells along x, y, t
  // Warps that share the samples of a tile, by how many tiles are left to the block. Where more are
  // left than the block has warps, the entry for its number of warps serves.
  uint8_t splits[kForwardWarps + 1] = {};
};

struct DeviceProps {
  int multiprocessors;
};

// An array that kernels read number by number, of the value's dtype or float; strides are in bytes.
struct Numbers {
  const unsigned char* data = nullptr;
  bool are_float = false;
  uint64_t stride[kMaxRank] = {};
};

struct KernelParams {
  Problem problem;
  Order order;
  Numbers positions, scores, reference;  // the problem's own
  int32_t from_offsets;                  // whether there is a reference, and a softmax to find
  int32_t B, Q, M, D, L, K;              // as in the problem; products of them may pass 32 bits
  int32_t size[kMaxLevels][kMaxAxes];    // of each level along x, y, t; images have one frame
  int32_t first_cell[kMaxLevels];        // of each level, in 0..S
};

}  // namespace stdeform::cuda
