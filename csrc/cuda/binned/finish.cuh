// What is left of the backward by bins when the sums are done.
#pragma once

#include "cuda/binned/assign.cuh"
#include "cuda/lanes/row_grads.cuh"

namespace stdeform::cuda {

// Finishes the gradients of every row from those of its attention weights and pixel coordinates.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    finish_rows_kernel(const __grid_constant__ KernelParams params,
                       const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  const Problem& p = params.problem;
  visit_chunk_row(params, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    auto row = sampled_row<T, N>(params, bins, at);
    const int64_t gradient_row = at.in_problem(params);
    const bool wants_logits = p.grad_scores.data && params.from_offsets;
    RowSums<Real, N> sums;
    for (int l = 0; l < params.L; ++l) {
      row.go_to_level(params, l, l > 0);
      sums.start_level();
      for (int k = lane.point; present && k < params.K; k += RowLane::kPoints) {
        const int64_t sample = at.in_problem(params, l, k);
        if (wants_logits) {
          sums.attention +=
              row.attention(params, k) * static_cast<const Real*>(p.grad_scores.data)[sample];
        }
        if (!wants_pixel_grads(p)) continue;
        const Real* kept = pixel_grads_of<T, N>(params, bins, at.in_chunk(params, l, k), sample);
        Real pixel[N];
#pragma unroll
        for (int n = 0; n < N; ++n) pixel[n] = kept[n];
        pass_on_pixel_grads<T, N>(params, row, sample, l, k, pixel, sums);
      }
      if (!p.grad_reference.data) continue;
      sums.add_up_level(lane);
      if (present) write_reference_grads<Real, N>(params, lane, gradient_row, l, sums);
    }
    if (!wants_logits) return;
    const Real sum = lane.reduce(sums.attention, [](Real a, Real b) { return a + b; });
    if (present) differentiate_softmax(params, row, lane, gradient_row, sum, 0, 1);
  });
}

}  // namespace stdeform::cuda
