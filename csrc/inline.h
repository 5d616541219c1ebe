// How functions are marked that both compilers see: those that must become part of their caller,
// because kernels live from it, and those that a GPU may call too.
#pragma once

#ifdef __CUDACC__
#define STDEFORM_INLINE __host__ __device__ __forceinline__
#define STDEFORM_HOST_DEVICE __host__ __device__
#else
#define STDEFORM_INLINE inline __attribute__((always_inline))
#define STDEFORM_HOST_DEVICE
#endif
