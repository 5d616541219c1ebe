// The CUDA operator as tests/cuda/emulator/emulated.py calls it.
#include <exception>
#include <string>

#include "cuda/api.h"

using stdeform::Array;
using stdeform::Problem;

// In the order of the fields of Problem; data is null if there is no array.
struct Arrays {
  Array value, reference, positions, scores, out, grad_out;
  Array grad_value, grad_reference, grad_positions, grad_scores;
};

// `sizes` is {N, B, S, M, D, Q, L, P}; `forced` and `to` are fields of Tuning; `allocate` returns
// the workspace. Returns null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* run_operator(
    bool backward, bool deterministic, const int64_t* sizes, const int64_t* spatial_shapes,
    const int64_t* num_points, bool boxes, const Arrays* arrays, int device, int num_forced,
    const char* const* forced, const int64_t* to, void* (*allocate)(int64_t bytes)) {
  Problem p;
  p.N = static_cast<int>(sizes[0]);
  p.B = sizes[1], p.S = sizes[2], p.M = sizes[3], p.D = sizes[4];
  p.Q = sizes[5], p.L = sizes[6], p.P = sizes[7];
  p.spatial_shapes = spatial_shapes;
  p.num_points = num_points;
  p.boxes = boxes;
  p.value = arrays->value;
  p.reference = arrays->reference;
  p.positions = arrays->positions;
  p.scores = arrays->scores;
  p.grad_value = arrays->grad_value;
  p.grad_reference = arrays->grad_reference;
  p.grad_positions = arrays->grad_positions;
  p.grad_scores = arrays->grad_scores;
  static std::string message;
  try {
    stdeform::cuda::Tuning tuning;
    for (int i = 0; i < num_forced; ++i) tuning[forced[i]] = to[i];
    p.deterministic = deterministic;
    if (backward) {
      p.grad_out = arrays->grad_out;
      const stdeform::cuda::Backward work(p, tuning);
      const int64_t bytes = work.workspace_bytes();
      work.enqueue({device, nullptr}, bytes ? allocate(bytes) : nullptr);
    } else {
      p.out = arrays->out;
      stdeform::cuda::enqueue_forward(p, {device, nullptr}, tuning);
    }
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
