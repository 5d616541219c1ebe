// Lets a C++17 compiler build CUDA kernels and run them on the processor: every thread of a block
// is a fiber, blocks run one after another, and the rules of barriers, warps and memory are checked
// while they run. What kernels include instead of the CUDA runtime; see csrc/cuda/compat.cuh.
#pragma once

#ifdef __CUDACC__
#error "the emulator is for the host's compiler"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/atomics.h"
#include "core/intrinsics.h"
#include "core/memory.h"
#include "core/runtime.h"
#include "core/sync.h"
#include "core/thread.h"

// CUDA's headers make nothing of these, which is right for __global__ and __device__ alone.
#undef __shared__
#define __shared__ EMULATED_KERNELS_DECLARE_SHARED_ARRAYS_BY_STDEFORM_SHARED
#undef __constant__
#define __constant__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define threadIdx (::emulated::current->index)
#define blockIdx (::emulated::current->block)
#define blockDim (::emulated::current->block_size)
#define gridDim (::emulated::current->grid_size)
#define warpSize (::emulated::kWarp)
