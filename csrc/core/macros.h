// How code is marked that both compilers see: functions that must become part of their caller,
// because kernels live from it, functions that a GPU may call too, and loops of a few steps that
// must be unrolled for arrays to stay in registers.
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
