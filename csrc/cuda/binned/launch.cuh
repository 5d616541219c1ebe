// The launches of the backward by bins, for one chunk of heads after the other:
//   1 zero     the counts and, with the first chunk, grad_value    zero.cu
//   2 count    samples per bin                                     assign.cuh
//   3 reserve  room for each bin                                   sort.cu
//   4 fill     samples into their bins                             assign.cuh
//   5 sort     each bin by sample numbers (deterministic)          sort.cu
//   6 sum      grad_value; gradients of samples                    sum.cuh
//   7 finish   gradients of positions, reference, logits           finish.cuh
#pragma once

#include <type_traits>

#include "cuda/binned/finish.cuh"
#include "cuda/binned/plan.h"
#include "cuda/binned/sort.h"
#include "cuda/binned/sum.cuh"
#include "cuda/zero.h"

namespace stdeform::cuda {

// Calls launch(layout) with the layout for rows of D channels. `aligned`: whether all rows can be
// read and added to in vectors of 16 bytes. A row with more channels than a layout takes several
// passes.
template <int N, class F>
void choose_bin_layout(int64_t D, bool aligned, F launch) {
  if (aligned && D % 64 == 0) return launch(BinLayout<N, 64>());
  if (aligned && D % 48 == 0) return launch(BinLayout<N, 48>());
  if (aligned && D % 32 == 0) return launch(BinLayout<N, 32>());
  launch(AnyBinLayout<N>());
}

template <class T, int N, class Layout>
void launch_bin_sums(const KernelParams& params, const Bins& bins, int64_t samples,
                     cudaStream_t stream) {
  const auto launch = [&](int color, int64_t warps) {
    const dim3 grid(1 + (warps - 1) / kWarps);
    STDEFORM_LAUNCH((bin_backward_kernel<T, N, Layout>), grid, dim3(kThreads), 0, stream, params,
                    bins, color);
  };
  if (!params.problem.deterministic) return launch(-1, 1 + (samples - 1) / bins.samples_per_warp);
  for (int color = 0; color < (1 << N); ++color) {
    launch(color, bins.heads * BinsOfColor<N>::in_head(params, color));
  }
}

// The gradient of the value, for filling it with zeros before kernels add to it.
inline Words grad_value_words(const Problem& p) {
  const int words = p.grad_value.dtype == DType::f64 ? 2 : 1;
  const int64_t numbers = p.grad_value.data ? p.B * p.S * p.M * p.D : 0;
  return {static_cast<uint32_t*>(p.grad_value.data), numbers * words};
}

template <class T, int N>
void launch_binned_backward(const KernelParams& params, const BinPlan& plan, void* workspace,
                            bool aligned, int multiprocessors, cudaStream_t stream) {
  const Problem& p = params.problem;
  for (int64_t head = 0; head < p.B * p.M; head += plan.heads()) {
    const Bins bins = plan.chunk(head, workspace);
    const int64_t query_heads = bins.heads * p.Q;
    const dim3 grid(1 + (query_heads - 1) / kQueryHeadsOfBlock);
    const Words counts = {bins.count, bins.heads * int64_t(bins.per_head) + 1};
    // 1 zero
    fill_with_zeros(head == 0 ? grad_value_words(p) : Words(), counts, multiprocessors, stream);
    // 2 count
    STDEFORM_LAUNCH((count_kernel<T, N>), grid, dim3(kThreads), 0, stream, params, bins);
    // 3 reserve
    reserve_bins(bins, stream);
    // 4 fill
    STDEFORM_LAUNCH((fill_kernel<T, N>), grid, dim3(kThreads), 0, stream, params, bins);
    // 5 sort
    if (p.deterministic) sort_bins(bins, stream);
    // 6 sum
    const auto launch = [&](auto layout) {
      launch_bin_sums<T, N, decltype(layout)>(params, bins, query_heads * p.P, stream);
    };
    if constexpr (std::is_same_v<T, double>) {
      launch(AnyBinLayout<N>());  // for checking gradients, where speed does not count
    } else {
      choose_bin_layout<N>(p.D, aligned, launch);
    }
    // 7 finish
    if (p.grad_positions.data || p.grad_reference.data ||
        (p.grad_scores.data && p.reference.data)) {
      STDEFORM_LAUNCH((finish_kernel<T, N>), grid, dim3(kThreads), 0, stream, params, bins);
    }
  }
}

}  // namespace stdeform::cuda
