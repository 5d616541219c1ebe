// From the gradients of a row's samples to those of what the caller passed.
#pragma once

#include "samples.cuh"

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
};

// From the gradients of a sample's pixel coordinates to those of its position, which are written,
// and of its row's reference, which are added up. `at` counts samples as gradients do.
template <class T, int N>
__device__ __forceinline__ void pass_on_pixel_grads(const Call& call, const SampledRow<T>& row,
                                                    int64_t at, int l, int k,
                                                    const Compute<T> (&pixel)[N],
                                                    RowSums<Compute<T>, N>& sums) {
  using Real = Compute<T>;
  const Problem& p = call.problem;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    // A coordinate that reads nothing passes nothing, and may be infinite.
    const bool passes = pixel[n] != Real(0);
    if (p.grad_positions.data) {
      const Real grad = passes ? pixel[n] * pixel_scale<T, N>(call, row, l, n) : Real(0);
      write<T>(p.grad_positions, at * N + n, grad);
    }
    const Real by_centre = pixel[n] * Real(call.size[l][n]);
    sums.reference[n] += by_centre;
    if (p.boxes && p.grad_reference.data && passes) {
      sums.reference[N + n] += by_centre * position(p, row, l, k, n) * (Real(0.5) / Real(call.K));
    }
  }
}

// Writes what the lanes of a row have added up for its reference on one level. All lanes of the
// warp call this and the next one; `present` says whether the lane has a row. `at` counts rows as
// gradients do, [B, Q, M].
template <class Real, int N, class Lane>
__device__ __forceinline__ void write_reference_grads(const Call& call, const Lane& lane,
                                                      bool present, int64_t at, int l,
                                                      const RowSums<Real, N>& sums) {
  const Problem& p = call.problem;
  if (!p.grad_reference.data) return;
  const int width = p.boxes ? 2 * N : N;
  Real* to = static_cast<Real*>(p.grad_reference.data) + (at * p.L + l) * width;
#pragma unroll
  for (int r = 0; r < 2 * N; ++r) {
    const Real sum = lane.reduce(sums.reference[r], [](Real a, Real b) { return a + b; });
    if (present && lane.point == 0 && r < width) to[r] = sum;
  }
}

// Gradients of the logits of a row, from those of its attention weights, which lie there, written
// or read by the same lane; `attention` is the lane's part of the sum of weight times gradient.
template <class T, class Lane>
__device__ void differentiate_softmax(const Call& call, const SampledRow<T>& row, const Lane& lane,
                                      bool present, int64_t at, Compute<T> attention_sum) {
  using Real = Compute<T>;
  const Problem& p = call.problem;
  if (!p.grad_scores.data || !p.reference.data) return;
  const Real sum = lane.reduce(attention_sum, [](Real a, Real b) { return a + b; });
  if (!present) return;
  Real* grads = static_cast<Real*>(p.grad_scores.data) + at * p.L * p.K;
  for (int l = 0; l < call.L; ++l) {
    for (int k = lane.point; k < call.K; k += Lane::kPoints) {
      Real& grad = grads[l * p.K + k];
      grad = attention<T>(p, row, score<T>(p, row, l, k)) * (grad - sum);
    }
  }
}

}  // namespace stdeform::cuda
