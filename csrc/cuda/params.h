// The parameters of a kernel, passed by value with the sizes of the levels in them, so that no
// kernel waits for a copy; and what tests and benchmarks may force. No CUDA headers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/problem.h"

namespace stdeform::cuda {

constexpr int kMaxLevels = 64;
constexpr int kWarpSize = 32;

// Warps of a forward block, which has a multiprocessor of 64 Ki registers to itself: 128 registers
// for each thread, within which no kernel spills.
constexpr int kForwardWarps = 16;

// In which order queries are processed, and how tiles are split. Results do not depend on it,
// except for the order of sums.
struct Schedule {
  bool in_bricks = false;        // queries are the cells of the levels
  int32_t brick[kMaxAxes] = {};  // cells along x, y, t
  // Warps that share the samples of a tile, by the number of tiles that are left to the block. For
  // more tiles than the block has warps, the entry for its number of warps applies.
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
  Schedule schedule;
  Numbers positions, scores, reference;  // the problem's own
  int32_t from_offsets;                  // whether there is a reference, and a softmax to find
  int32_t B, Q, M, D, L, P;              // as in the problem; products of them may pass 32 bits
  int32_t size[kMaxLevels][kMaxAxes];    // of each level along x, y, t; images have one frame
  int32_t first_cell[kMaxLevels];        // of each level, in 0..S
  int32_t first_point[kMaxLevels + 1];   // of each level, in 0..P, then P

  // K of level l.
  STDEFORM_INLINE int32_t num_points(int l) const { return first_point[l + 1] - first_point[l]; }
};

// What tests and benchmarks may force; negative: the kernels choose. Results do not depend on it,
// except for the order of sums: those over the splits of a tile, and the gradient of the value.
struct Tuning {
  int64_t forward_bricks = -1;    // 0: plain order; otherwise cells of a brick along each axis
  int64_t forward_splits = -1;    // warps that share a tile
  int64_t backward_splits = -1;   // the same, in the direct backward
  int64_t backward_bins = -1;     // whether the gradient of the value is summed by bins
  int64_t samples_per_bin = -1;   // from which on it is, if backward_bins is not forced
  int64_t samples_per_warp = -1;  // that a warp sums, by bins
  int64_t workspace_bytes = -1;   // at most, but at least what one head needs

  // The field with a name; throws std::invalid_argument if there is none.
  int64_t& operator[](const std::string& name) {
    if (name == "forward_bricks") return forward_bricks;
    if (name == "forward_splits") return forward_splits;
    if (name == "backward_splits") return backward_splits;
    if (name == "backward_bins") return backward_bins;
    if (name == "samples_per_bin") return samples_per_bin;
    if (name == "samples_per_warp") return samples_per_warp;
    if (name == "workspace_bytes") return workspace_bytes;
    throw std::invalid_argument("the CUDA kernels have no tuning \"" + name + "\"");
  }
};

}  // namespace stdeform::cuda
