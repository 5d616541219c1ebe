// Macros for code that both g++ and nvcc compile: forced inlining, functions for host and device,
// and unrolling of short loops, without which small arrays do not stay in registers.
#pragma once

#ifdef __CUDACC__
#define STDEFORM_INLINE __host__ __device__ __forceinline__
#define STDEFORM_HOST_DEVICE __host__ __device__
#define STDEFORM_UNROLL _Pragma("unroll")
#else
#define STDEFORM_INLINE inline __attribute__((always_inline))
#define STDEFORM_HOST_DEVICE
#define STDEFORM_UNROLL _Pragma("GCC unroll 8")
#endif
