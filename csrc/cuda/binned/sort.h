// What is done to bins between counting and placing their samples, and after. These kernels know no
// dtype; all errors are CUDA's last error.
#pragma once

#include <cuda_runtime.h>

#include "cuda/binned/bins.h"

namespace stdeform::cuda {

// Gives each bin its place in `samples`: sets `end` to where it begins. Bins lie in no fixed order.
void reserve_bins(const Bins&, cudaStream_t);

// Sorts the samples of each bin by their numbers.
void sort_bins(const Bins&, cudaStream_t);

}  // namespace stdeform::cuda
