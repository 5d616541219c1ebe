// Reserving room for bins before they are filled, and sorting them after. These kernels are
// independent of the dtype; all errors are CUDA's last error.
#pragma once

#include <cuda_runtime.h>

#include "cuda/binned/bins.h"

namespace stdeform::cuda {

// Gives each bin its room in `samples`: sets `end` to its first slot. Bins are in no fixed order.
void reserve_bins(const Bins&, cudaStream_t);

// Sorts the samples of each bin by their numbers.
void sort_bins(const Bins&, cudaStream_t);

}  // namespace stdeform::cuda
