// From the gradients of a row's samples to those of what the caller passed.
#pragma once

#include "cuda/lanes/samples.cuh"

namespace stdeform::cuda {

// What a lane adds up over the samples of its row that it reads.
template <class Real, int N>
struct RowSums {
  Real attention = 0;     // attention weight times its gradient, for the softmax
  Real reference[2 * N];  // of one level

  __device__ __forceinline__ void start_level() {
#pragma unroll
    for (int r = 0; r < 2 * N; ++r) reference[r] = 0;
  }
  // Gives all lanes of a row its sums for the level. All lanes of the warp call it.
  template <class Lane>
  __device__ __forceinline__ void add_up_level(const Lane& lane) {
#pragma unroll
    for (int r = 0; r < 2 * N; ++r) {
      reference[r] = lane.reduce(reference[r], [](Real a, Real b) { return a + b; });
    }
  }
};

// From the gradients of a sample's pixel coordinates to those of its position, which are written,
// and of its row's reference, which are added up. `at` counts samples as gradients do.
template <class T, int N>
__device__ __forceinline__ void pass_on_pixel_grads(const KernelParams& params,
                                                    const SampledRow<T, N>& row, int64_t at, int l,
                                                    int k, const Compute<T> (&pixel)[N],
                                                    RowSums<Compute<T>, N>& sums) {
  using Real = Compute<T>;
  const Problem& p = params.problem;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    // A coordinate that reads nothing passes nothing, and may be infinite.
    const bool passes = pixel[n] != Real(0);
    if (p.grad_positions.data) {
      const Real grad = passes ? pixel[n] * row.pixel_scale[n] : Real(0);
      write<T>(p.grad_positions, at * N + n, grad);
    }
    const Real by_centre = pixel[n] * Real(params.size[l][n]);
    sums.reference[n] += by_centre;
    if (p.boxes && p.grad_reference.data && passes) {
      sums.reference[N + n] +=
          by_centre * row.position(params, k, n) * (Real(0.5) / Real(params.K));
    }
  }
}

// Writes the sums of a row for its reference on one level, by one of its lanes. `at` counts rows as
// gradients do, [B, Q, M].
template <class Real, int N, class Lane>
__device__ __forceinline__ void write_reference_grads(const KernelParams& params, const Lane& lane,
                                                      int64_t at, int l,
                                                      const RowSums<Real, N>& sums) {
  const Problem& p = params.problem;
  if (lane.point != 0) return;
  const int width = p.boxes ? 2 * N : N;
  Real* to = static_cast<Real*>(p.grad_reference.data) + (at * p.L + l) * width;
#pragma unroll
  for (int r = 0; r < 2 * N; ++r) {
    if (r < width) to[r] = sums.reference[r];
  }
}

// Gradients of the logits of a row, from those of its attention weights, which were written there
// by an earlier kernel, by the same lane, or by another one before a barrier. `attention_sum` is
// that of weight times gradient over the row, which is at its last level. Of `splits` warps that
// take samples one after the other, this one is number `split`.
template <class T, int N, class Lane>
__device__ __forceinline__ void differentiate_softmax(const KernelParams& params,
                                                      const SampledRow<T, N>& row, const Lane& lane,
                                                      int64_t at, Compute<T> attention_sum,
                                                      int split, int splits) {
  using Real = Compute<T>;
  Real* grads =
      static_cast<Real*>(params.problem.grad_scores.data) + at * params.problem.L * params.K;
  int owner = 0;
  for_each_score<T>(params, lane, row.first_scores(params), [&](Real score, int l, int k) {
    const bool mine = owner == split;
    if (++owner == splits) owner = 0;
    if (!mine) return;
    Real& grad = grads[int64_t(l) * params.K + k];
    grad = std::exp(score - row.largest) * row.softmax_scale * (grad - attention_sum);
  });
}

}  // namespace stdeform::cuda
