// What tests and benchmarks may force. Results do not depend on it, but for the order of sums:
// those of a row's splits, and those of the value's gradient.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace stdeform::cuda {

// Negative: the kernels choose.
struct Tuning {
  int64_t forward_bricks = -1;    // 0: plain order; otherwise cells of a brick along each axis
  int64_t forward_splits = -1;    // warps that share a tile
  int64_t backward_splits = -1;   // the same, where the backward does not work bin by bin
  int64_t backward_bins = -1;     // whether the gradient of the value is summed bin by bin
  int64_t samples_per_bin = -1;   // from which on it is, where backward_bins leaves the choice
  int64_t samples_per_warp = -1;  // samples that a warp sums in turn
  int64_t workspace_bytes = -1;   // at most, but at least what one head needs

  // The field of a name; throws std::invalid_argument if there is none.
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
