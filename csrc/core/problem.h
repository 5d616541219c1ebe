// One call of the operator as plain addresses, sizes and strides. Knows no framework.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

namespace stdeform {

constexpr int kMaxAxes = 3;  // x, y, t
constexpr int kMaxRank = 5;

// A strided array; strides count elements. `data` is null if there is no array.
struct Array {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride[kMaxRank] = {};
};

namespace {

// The first element of [b, i, m] in an array with the first axes of the value (i is a cell) or of
// the result (i is a query).
template <class T>
STDEFORM_INLINE T* at(const Array& a, int64_t b, int64_t i, int64_t m) {
  return static_cast<T*>(a.data) + b * a.stride[0] + i * a.stride[1] + m * a.stride[2];
}

}  // namespace

// Letters as in docs/guide/conventions.md. The operator has two forms, and the kernels tell
// them apart by `reference`:
//              without reference points    with reference points
//   positions  sampling locations          sampling offsets
//   scores     attention weights           attention logits, before softmax
struct Problem {
  Problem() {}  // not implicit, because of the union

  int N = 0;  // axes of a level: 2 or 3
  int64_t B = 0, S = 0, M = 0, D = 0, Q = 0, L = 0;
  int64_t P = 0;                            // points of a query and head, of all levels
  const int64_t* num_points = nullptr;      // [L], K of each level; their sum is P
  const int64_t* spatial_shapes = nullptr;  // [L, N], outermost axis first
  bool boxes = false;                       // reference points are boxes: centre, then size

  Array value;      // [B, S, M, D], last stride 1
  Array reference;  // [B, Q, L, N or 2N]
  Array positions;  // [B, Q, M, P, N]
  Array scores;     // [B, Q, M, P]

  union {
    Array out = {};  // [B, Q, M, D], last stride 1; forward only
    Array grad_out;  // [B, Q, M, D], last stride 1; backward only
  };

  // Backward only; contiguous, null if not requested. The CPU kernels write every element, in the
  // dtype of the tensor; for CUDA see cuda/api.h.
  Array grad_value;      // [B, S, M, D]
  Array grad_reference;  // [B, Q, L, N or 2N]
  Array grad_positions;  // [B, Q, M, P, N]
  Array grad_scores;     // [B, Q, M, P]

  // CPU only.
  int num_threads = 1;           // at most
  bool use_all_threads = false;  // even if there is too little work for them

  // CUDA only, backward.
  bool deterministic = false;  // the same bits in every run
};

}  // namespace stdeform
