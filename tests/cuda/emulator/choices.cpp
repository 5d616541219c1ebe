// What the CUDA operator chooses before it launches anything, for any device: for
// tests/cuda/emulator/test_choices.py.
#include <algorithm>

#include "cuda/binned/plan.h"
#include "cuda/launch.cuh"
#include "cuda/schedule.h"

using namespace stdeform;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// `sizes` is {N, B, S, M, D, Q, L, P}.
Problem problem_of(const int64_t* sizes, const int64_t* spatial_shapes) {
  Problem p;
  p.N = static_cast<int>(sizes[0]);
  p.B = sizes[1], p.S = sizes[2], p.M = sizes[3], p.D = sizes[4];
  p.Q = sizes[5], p.L = sizes[6], p.P = sizes[7];
  p.spatial_shapes = spatial_shapes;
  return p;
}

}  // namespace

// The forward's schedule for aligned rows: {whether in bricks, cells along x, y, t, and the splits
// of a tile for each number of tiles left}.
EXPORT void chosen_schedule(const int64_t* sizes, int32_t* out) {
  cuda::KernelParams params = {};
  params.problem = problem_of(sizes, nullptr);
  const Problem& p = params.problem;
  params.B = int32_t(p.B), params.Q = int32_t(p.Q), params.M = int32_t(p.M);
  params.D = int32_t(p.D), params.L = int32_t(p.L), params.P = int32_t(p.P);
  for (int l = 0; l < p.L; ++l) params.first_point[l + 1] = params.P / params.L * (l + 1);
  cuda::choose_layout<4>(p.D, true, [&](auto layout) {
    const auto schedule = cuda::choose_forward_schedule(params, decltype(layout)::kRows, {});
    out[0] = schedule.in_bricks;
    std::copy_n(schedule.brick, kMaxAxes, out + 1);
    std::copy_n(schedule.splits, cuda::kForwardWarps + 1, out + 1 + kMaxAxes);
  });
}

// Whether rows [sizes[0], sizes[1], sizes[2], D] of numbers of four bytes, from address 0 on, are
// taken to be aligned.
EXPORT bool aligned_rows(const int64_t* sizes, const int64_t* strides) {
  cuda::KernelParams params = {};
  params.B = int32_t(sizes[0]), params.M = int32_t(sizes[2]);
  Array rows;
  std::copy_n(strides, 4, rows.stride);
  return cuda::rows_are_aligned(rows, params, sizes[1], 4);
}

// Whether the backward works bin by bin; `samples_per_bin` is that of Tuning.
EXPORT bool chosen_bins(const int64_t* sizes, const int64_t* spatial_shapes, bool wants_value,
                        int64_t samples_per_bin) {
  Problem p = problem_of(sizes, spatial_shapes);
  if (wants_value) p.grad_value.data = &p;  // anything but null
  cuda::Tuning tuning;
  tuning.samples_per_bin = samples_per_bin;
  return cuda::BinPlan(p, tuning).in_use();
}
