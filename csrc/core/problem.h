// One call of the operator, as plain addresses, sizes and strides. Knows no framework.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace stdeform {

constexpr int kMaxAxes = 3;  // x, y, t
constexpr int kMaxRank = 6;

// A strided array; strides count elements. `data` is null where there is no array.
struct Array {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride[kMaxRank] = {};
};

// Letters as in docs/conventions.md. Without `reference`, positions are sampling locations and
// scores attention weights; with it, positions are sampling offsets and scores attention logits.
struct Problem {
  int N = 0;  // axes of a level: 2 or 3
  int64_t B = 0, S = 0, M = 0, D = 0, Q = 0, L = 0, K = 0;
  const int64_t* spatial_shapes = nullptr;  // [L, N], outermost axis first
  bool boxes = false;                       // reference holds centre and size

  Array value;      // [B, S, M, D], last stride 1
  Array reference;  // [B, Q, L, N or 2N]
  Array positions;  // [B, Q, M, L, K, N]
  Array scores;     // [B, Q, M, L, K]

  Array out;  // [B, Q, M, D]; forward: the result; backward: its gradient, last stride 1

  // Backward only; contiguous, null where nobody asked. The CPU kernels write all of them in full,
  // each in the dtype of its tensor; for those of CUDA see cuda/api.h.
  Array grad_value;      // [B, S, M, D]
  Array grad_reference;  // [B, Q, L, N or 2N]
  Array grad_positions;  // [B, Q, M, L, K, N]
  Array grad_scores;     // [B, Q, M, L, K]

  // CPU only.
  int num_threads = 1;           // at most
  bool use_all_threads = false;  // even where there is too little work for them

  // CUDA only, backward.
  bool deterministic = false;  // the same bits in every run
};

}  // namespace stdeform
