#include "cuda/zero.h"

#include <algorithm>

#include "cuda/compat.cuh"
#include "cuda/lanes/layout.cuh"

namespace stdeform::cuda {
namespace {

constexpr int kBlocks = 8;  // of a multiprocessor, at most

__device__ void fill(const Words& words, int64_t thread, int64_t threads) {
  const int64_t vectors = words.size / 4;
  for (int64_t i = thread; i < vectors; i += threads) {
    reinterpret_cast<uint4*>(words.first)[i] = make_uint4(0, 0, 0, 0);
  }
  if (thread < words.size % 4) words.first[vectors * 4 + thread] = 0;
}

__global__ void __launch_bounds__(kThreads) zero_kernel(Words a, Words b) {
  wait_for_launch_before();
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x) * kThreads;
  fill(a, thread, threads);
  fill(b, thread, threads);
}

}  // namespace

void fill_with_zeros(const Words& a, const Words& b, int multiprocessors, cudaStream_t stream) {
  const int64_t vectors = (std::max(a.size, b.size) + 3) / 4;
  if (vectors == 0) return;
  const int64_t blocks = 1 + (vectors - 1) / kThreads;
  const dim3 grid(std::min<int64_t>(blocks, int64_t(multiprocessors) * kBlocks));
  STDEFORM_LAUNCH(zero_kernel, grid, dim3(kThreads), 0, stream, a, b);
}

}  // namespace stdeform::cuda
