// The kernels of one dtype: which of them a problem takes, and their launch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/backward.cuh"
#include "cuda/binned/launch.cuh"
#include "cuda/forward.cuh"
#include "cuda/schedule.h"

namespace stdeform::cuda {

// Whether every row of an array [B, rows, M, D] can be read in vectors of 16 bytes. The stride of
// an axis of size 1 is never used, so it may have any value.
inline bool rows_are_aligned(const Array& a, const KernelParams& params, int64_t rows,
                             int element_size) {
  constexpr int kVecBytes = 16;
  const int64_t sizes[] = {params.B, rows, params.M};
  bool aligned = reinterpret_cast<uintptr_t>(a.data) % kVecBytes == 0;
  for (int i = 0; i < 3; ++i) {
    aligned &= sizes[i] == 1 || a.stride[i] * element_size % kVecBytes == 0;
  }
  return aligned;
}

// Calls launch(layout) with the layout for rows of D channels. Vector layouts load `vec_size`
// channels at a time; `aligned` says whether they may be used.
template <int vec_size, class F>
void choose_layout(int64_t D, bool aligned, F launch) {
  if (!aligned) return launch(AnyLayout());
  switch (D) {
    case 16: return launch(VectorLayout<16, vec_size>());
    case 32: return launch(VectorLayout<32, vec_size>());
    case 48: return launch(VectorLayout<48, vec_size>());
    case 64: return launch(VectorLayout<64, vec_size>());
    case 96: return launch(VectorLayout<96, vec_size>());
    case 128: return launch(VectorLayout<128, vec_size>());
    default: return launch(AnyLayout());
  }
}

template <class T, int N>
void launch_forward_kernels(const KernelParams& params, const DeviceProps& device,
                            const Tuning& tuning, cudaStream_t stream) {
  const Problem& p = params.problem;
  const auto launch = [&](auto layout) {
    using Layout = decltype(layout);
    KernelParams scheduled = params;
    scheduled.schedule = choose_forward_schedule(params, Layout::kRows, tuning);
    const int64_t tiles = tiles_of_all(params, Layout::kRows);
    const auto blocks = std::min<int64_t>(device.multiprocessors, tiles);
    STDEFORM_LAUNCH((forward_kernel<T, N, Layout>), dim3(blocks), dim3(kForwardWarps * kWarpSize),
                    0, stream, scheduled, TilePartition(tiles, blocks));
  };
  if constexpr (std::is_same_v<T, double>) {
    launch(AnyLayout());  // for checking gradients, where speed does not count
  } else {
    const bool aligned = rows_are_aligned(p.value, params, p.S, sizeof(T)) &&
                         rows_are_aligned(p.out, params, p.Q, sizeof(T)) &&
                         p.value.stride[1] <= int64_t(0xffffffff / sizeof(T));
    choose_layout<16 / sizeof(T)>(p.D, aligned, launch);
  }
}

template <class T, int N>
void launch_backward_kernels(const KernelParams& params, const BinPlan& plan, void* workspace,
                             const DeviceProps& device, const Tuning& tuning, cudaStream_t stream) {
  const Problem& p = params.problem;
  const bool aligned = rows_are_aligned(p.value, params, p.S, sizeof(T)) &&
                       rows_are_aligned(p.grad_out, params, p.Q, sizeof(T));
  if (plan.in_use()) {
    return launch_binned_backward<T, N>(params, plan, workspace, aligned, device.multiprocessors,
                                        stream);
  }
  fill_with_zeros(grad_value_words(p), Words(), device.multiprocessors, stream);
  const auto launch = [&](auto layout) {
    using Layout = decltype(layout);
    KernelParams scheduled = params;
    scheduled.schedule = choose_schedule(params, kWarps, BackwardShape<T, N, Layout>::kPoints,
                                         tuning.backward_splits);
    const int64_t tiles = tiles_of_all(params, Layout::kRows);
    const auto blocks =
        std::min<int64_t>(device.multiprocessors * kBackwardBlocks<Compute<T>>, tiles);
    STDEFORM_LAUNCH((backward_kernel<T, N, Layout>), dim3(blocks), dim3(kThreads), 0, stream,
                    scheduled, TilePartition(tiles, blocks));
  };
  if constexpr (std::is_same_v<T, double>) {
    launch(AnyLayout());
  } else {
    // Vectors of four for every dtype: the gradient that is added to is float32, and 16 bytes are
    // the longest addition.
    const bool near = p.value.stride[1] <= int64_t(0xffffffff / sizeof(T)) &&
                      p.M * p.D <= int64_t(0xffffffff / sizeof(float));
    choose_layout<4>(p.D, aligned && near, launch);
  }
}

// Called by api.cu. One source file per dtype instantiates these, so that they compile in parallel.
template <class T>
void launch_forward(const KernelParams& params, const DeviceProps& device, const Tuning& tuning,
                    cudaStream_t stream) {
  params.problem.N == 3 ? launch_forward_kernels<T, 3>(params, device, tuning, stream)
                        : launch_forward_kernels<T, 2>(params, device, tuning, stream);
}
template <class T>
void launch_backward(const KernelParams& params, const BinPlan& plan, void* workspace,
                     const DeviceProps& device, const Tuning& tuning, cudaStream_t stream) {
  params.problem.N == 3
      ? launch_backward_kernels<T, 3>(params, plan, workspace, device, tuning, stream)
      : launch_backward_kernels<T, 2>(params, plan, workspace, device, tuning, stream);
}

}  // namespace stdeform::cuda
