// From the gradients of a query-head's samples to those of its inputs: positions, reference,
// scores.
#pragma once

#include "cuda/lanes/samples.cuh"

namespace stdeform::cuda {

// The sums of one lane over its samples of its query-head.
template <class Real, int N>
struct QueryHeadSums {
  Real attention = 0;     // attention weight times its gradient, for the softmax
  Real reference[2 * N];  // of one level

  __device__ __forceinline__ void start_level() {
#pragma unroll
    for (int r = 0; r < 2 * N; ++r) reference[r] = 0;
  }
  // Gives all lanes of a query-head its sums for the level. All lanes of the warp call it.
  template <class Lane>
  __device__ __forceinline__ void add_up_level(const Lane& lane) {
#pragma unroll
    for (int r = 0; r < 2 * N; ++r) {
      reference[r] = lane.reduce(reference[r], [](Real a, Real b) { return a + b; });
    }
  }
};

// From the gradients of a sample's pixel coordinates to those of its position, which are written,
// and of the reference, which are added up. `at` counts samples as gradients do, [B, Q, M, P].
template <class T, int N>
__device__ __forceinline__ void pass_on_pixel_grads(const KernelParams& params,
                                                    const QueryHead<T, N>& query_head, int64_t at,
                                                    int l, int k, const Compute<T> (&pixel)[N],
                                                    QueryHeadSums<Compute<T>, N>& sums) {
  using Real = Compute<T>;
  const Problem& p = params.problem;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    // Outside of the level the gradient is zero, and the coordinate may be infinite.
    const bool has_grad = pixel[n] != Real(0);
    if (p.grad_positions.data) {
      const Real grad = has_grad ? pixel[n] * query_head.pixel_scale[n] : Real(0);
      write<T>(p.grad_positions, at * N + n, grad);
    }
    const Real by_centre = pixel[n] * Real(params.size[l][n]);
    sums.reference[n] += by_centre;
    if (p.boxes && p.grad_reference.data && has_grad) {
      sums.reference[N + n] +=
          by_centre * query_head.position(params, k, n) * (Real(0.5) / Real(params.num_points(l)));
    }
  }
}

// One lane of a query-head writes its sums for the reference of one level. `at` counts query-heads
// as gradients do, [B, Q, M].
template <class Real, int N, class Lane>
__device__ __forceinline__ void write_reference_grads(const KernelParams& params, const Lane& lane,
                                                      int64_t at, int l,
                                                      const QueryHeadSums<Real, N>& sums) {
  const Problem& p = params.problem;
  if (lane.point != 0) return;
  const int width = p.boxes ? 2 * N : N;
  Real* to = static_cast<Real*>(p.grad_reference.data) + (at * p.L + l) * width;
#pragma unroll
  for (int r = 0; r < 2 * N; ++r) {
    if (r < width) to[r] = sums.reference[r];
  }
}

// Replaces the gradients of a query-head's attention weights by those of its logits. They were
// written by an earlier kernel, by the same lane, or by another one before a barrier.
// `attention_sum` is the sum of weight times gradient over the query-head, which is at its last
// level. Warp `split` of `splits` warps takes every splits-th sample of a lane.
template <class T, int N, class Lane>
__device__ __forceinline__ void differentiate_softmax(const KernelParams& params,
                                                      const QueryHead<T, N>& query_head,
                                                      const Lane& lane, int64_t at,
                                                      Compute<T> attention_sum, int split,
                                                      int splits) {
  using Real = Compute<T>;
  Real* grads = static_cast<Real*>(params.problem.grad_scores.data) + at * params.problem.P;
  int owner = 0;
  for_each_score<T>(params, lane, query_head.first_scores(params), [&](Real score, int l, int k) {
    const bool is_owner = owner == split;
    if (++owner == splits) owner = 0;
    if (!is_owner) return;
    Real& grad = grads[params.first_point[l] + k];
    grad =
        std::exp(score - query_head.max_logit) * query_head.softmax_scale * (grad - attention_sum);
  });
}

}  // namespace stdeform::cuda
