// Filling memory with zeros, two arrays by one launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace stdeform::cuda {

// `size` numbers of four bytes, aligned to 16 bytes.
struct Words {
  uint32_t* first = nullptr;
  int64_t size = 0;
};

// Errors are CUDA's last error.
void fill_with_zeros(const Words&, const Words&, int multiprocessors, cudaStream_t);

}  // namespace stdeform::cuda
