// What nvcc and the emulator of tests/cuda/emulator spell differently. Everything else in the
// kernels is plain CUDA C++, which both compile from the same files.
//
//   STDEFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//       kernel<<<...>>>(arguments...). Template arguments with commas go into parentheses,
//       STDEFORM_LAUNCH((forward<float, 3>), ...), or into a variable before.
//   STDEFORM_SHARED(T, name, n)
//       __shared__ T name[n];
//   STDEFORM_DYNAMIC_SHARED(T, name)
//       T* name: the block's dynamic shared memory, aligned to 16 bytes.
//   wait_for_launch_before()
//       Every kernel begins with it: if launches overlap, it returns when the kernel launched
//       before is done and its writes are visible. Otherwise it does nothing.
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

#include "emulator/emulator.h"

#define STDEFORM_LAUNCH EMULATED_LAUNCH
#define STDEFORM_SHARED EMULATED_SHARED
#define STDEFORM_DYNAMIC_SHARED EMULATED_DYNAMIC_SHARED

inline void wait_for_launch_before() {}

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Whether a kernel's blocks may start while the one before ends (programmatic dependent launch,
// from compute capability 9.0 on). A variant to be measured: `python -m benchmarks tune`.
#define STDEFORM_OVERLAP_LAUNCHES 0

#if STDEFORM_OVERLAP_LAUNCHES
template <class... Parameters, class... Arguments>
void launch_overlapping(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                        cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.stream = stream, config.attrs = &overlap, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);  // an error is the last error
}
#define STDEFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  launch_overlapping(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#else
#define STDEFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  do {                                                                  \
    const auto launched = kernel;                                       \
    launched<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);       \
  } while (false)
#endif

__device__ __forceinline__ void wait_for_launch_before() {
#if STDEFORM_OVERLAP_LAUNCHES && STDEFORM_CUDA_ARCH >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

#define STDEFORM_SHARED(T, name, n) __shared__ T name[n]

#define STDEFORM_DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char stdeform_dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(stdeform_dynamic_shared_bytes)

#endif
