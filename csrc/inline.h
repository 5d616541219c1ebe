// Functions that must become part of their caller: kernels live from it.
#pragma once

#ifdef __CUDACC__
#define STDEFORM_INLINE __host__ __device__ __forceinline__
#else
#define STDEFORM_INLINE inline __attribute__((always_inline))
#endif
