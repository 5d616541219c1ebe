// The last kernel of the backward by bins: from the gradients of samples to those of the inputs.
//
//   1 per sample      gradients of pixel coordinates -> of positions;   pass_on_pixel_grads
//                     sums for the reference and for the softmax
//   2 per level       gradient of the reference                         write_reference_grads
//   3 per query-head  gradients of attention weights -> of logits       differentiate_softmax
#pragma once

#include "cuda/binned/assign.cuh"
#include "cuda/lanes/input_grads.cuh"

namespace stdeform::cuda {

template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBinningBlocks)
    finish_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  const Problem& p = params.problem;
  visit_query_head(params, bins, [&](const auto& lane, bool has_query_head, const auto& at) {
    auto query_head = load_query_head<T, N>(params, bins, at);
    const int64_t at_query_head = at.in_problem(params);
    const bool needs_logits = p.grad_scores.data && params.from_offsets;
    QueryHeadSums<Real, N> sums;
    for (int l = 0; l < params.L; ++l) {
      query_head.go_to_level(params, l, l > 0);
      sums.start_level();
      // 1 per sample
      const int points = has_query_head ? params.num_points(l) : 0;
      for (int k = lane.point; k < points; k += BinningLane::kPoints) {
        const int64_t sample = at.in_problem(params, l, k);
        if (needs_logits) {
          sums.attention += query_head.attention(params, k) *
                            static_cast<const Real*>(p.grad_scores.data)[sample];
        }
        if (!needs_pixel_grads(p)) continue;
        const Real* pixel_grads =
            pixel_grads_of<T, N>(params, bins, at.in_chunk(params, l, k), sample);
        Real pixel[N];
#pragma unroll
        for (int n = 0; n < N; ++n) pixel[n] = pixel_grads[n];
        pass_on_pixel_grads<T, N>(params, query_head, sample, l, k, pixel, sums);
      }
      // 2 per level
      if (!p.grad_reference.data) continue;
      sums.add_up_level(lane);
      if (has_query_head) write_reference_grads<Real, N>(params, lane, at_query_head, l, sums);
    }
    // 3 per query-head
    if (!needs_logits) return;
    const Real sum = lane.reduce(sums.attention, [](Real a, Real b) { return a + b; });
    if (has_query_head) {
      differentiate_softmax(params, query_head, lane, at_query_head, sum, 0, 1);
    }
  });
}

}  // namespace stdeform::cuda
