// The spellings that nvcc and the emulator of tests/cuda_on_cpu do not share. Everything else in
// the kernels is plain CUDA C++, which both compile from the same files.
//
//   STDEFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//       kernel<<<...>>>(arguments...). Template arguments with commas go into parentheses,
//       STDEFORM_LAUNCH((forward<float, 3>), ...), or into a variable before.
//   STDEFORM_SHARED(T, name, n)
//       __shared__ T name[n];
//   STDEFORM_DYNAMIC_SHARED(T, name)
//       T* name: the block's dynamic shared memory, aligned to 16 bytes.
//   STDEFORM_CUDA_ARCH
//       The architecture that device code is compiled for, 900 for compute capability 9.0. The
//       emulator's build may choose one.
#pragma once

#ifndef STDEFORM_CUDA_ARCH
#ifdef __CUDA_ARCH__
#define STDEFORM_CUDA_ARCH __CUDA_ARCH__
#else
#define STDEFORM_CUDA_ARCH 900
#endif
#endif

#ifdef STDEFORM_EMULATED

#include "cuda_on_cpu/emulator.h"

#define STDEFORM_LAUNCH EMULATED_LAUNCH
#define STDEFORM_SHARED EMULATED_SHARED
#define STDEFORM_DYNAMIC_SHARED EMULATED_DYNAMIC_SHARED

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define STDEFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  do {                                                                  \
    const auto launched = kernel;                                       \
    launched<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);       \
  } while (false)

#define STDEFORM_SHARED(T, name, n) __shared__ T name[n]

#define STDEFORM_DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char stdeform_dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(stdeform_dynamic_shared_bytes)

#endif
