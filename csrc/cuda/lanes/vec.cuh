// Vectors of neighbouring elements: one load, one store, one addition to memory.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/compat.cuh"
#include "cuda/params.h"

namespace stdeform::cuda {

template <int bytes>
struct VecOf;
template <>
struct VecOf<2> {
  using type = uint16_t;
};
template <>
struct VecOf<4> {
  using type = uint32_t;
};
template <>
struct VecOf<8> {
  using type = uint2;
};
template <>
struct VecOf<16> {
  using type = uint4;
};
template <class T, int n>
using Vec = typename VecOf<int(sizeof(T)) * n>::type;

// n elements by one load, aligned to their size. They are constant while the kernel runs.
template <int n, class T>
__device__ __forceinline__ Vec<T, n> load_vec(const T* from) {
  return __ldg(reinterpret_cast<const Vec<T, n>*>(from));
}

template <class T, int n>
__device__ __forceinline__ void widen(Vec<T, n> vec, Compute<T> (&to)[n]) {
  if constexpr (std::is_same_v<T, BFloat16> && n > 1) {
    // Two at a time, one instruction each: the upper one only loses its lower bits.
    uint32_t pairs[n / 2];
    memcpy(pairs, &vec, sizeof vec);
#pragma unroll
    for (int i = 0; i < n; i += 2) {
      to[i] = bit_cast<float>(pairs[i / 2] << 16);
      to[i + 1] = bit_cast<float>(pairs[i / 2] & 0xffff0000u);
    }
  } else {
    T elements[n];
    memcpy(elements, &vec, sizeof vec);
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = to_real(elements[i]);
  }
}

// Rounds n numbers and stores them as one.
template <int n, class T>
__device__ __forceinline__ void store_vec(const Compute<T> (&from)[n], T* to) {
  T elements[n];
#pragma unroll
  for (int i = 0; i < n; ++i) from_real(from[i], elements[i]);
  Vec<T, n> vec;
  memcpy(&vec, elements, sizeof vec);
  *reinterpret_cast<Vec<T, n>*>(to) = vec;
}

// sums += factor * numbers, each rounded once.
template <class Real, int n>
__device__ __forceinline__ void multiply_add(Real factor, const Real (&numbers)[n], Real* sums) {
#pragma unroll
  for (int i = 0; i < n; ++i) sums[i] += factor * numbers[i];
}
#if STDEFORM_CUDA_ARCH >= 1000 && !defined(STDEFORM_EMULATED)
// Two by one instruction, with the same result. As PTX, because nvcc does not pair them by itself.
template <int n, class = std::enable_if_t<n % 2 == 0>>
__device__ __forceinline__ void multiply_add(float factor, const float (&numbers)[n], float* sums) {
#pragma unroll
  for (int i = 0; i < n; i += 2) {
    asm("{.reg .b64 factors, numbers, sums;\n"
        "mov.b64 factors, {%2, %2};\n"
        "mov.b64 numbers, {%3, %4};\n"
        "mov.b64 sums, {%0, %1};\n"
        "fma.rn.f32x2 sums, factors, numbers, sums;\n"
        "mov.b64 {%0, %1}, sums;}"
        : "+f"(sums[i]), "+f"(sums[i + 1])
        : "f"(factor), "f"(numbers[i]), "f"(numbers[i + 1]));
  }
}
#endif

// Adds n numbers atomically to global memory. `red` has no return value: the L2 cache performs the
// addition and the thread does not wait. As PTX, because nvcc does not know that an address
// computed from an integer is one of global memory, and a generic atomic addition is slow.
__device__ __forceinline__ void add_vec(const double (&numbers)[1], double* to) {
#ifdef STDEFORM_EMULATED
  atomicAdd(to, numbers[0]);
#else
  asm volatile("red.global.add.f64 [%0], %1;" : : "l"(to), "d"(numbers[0]));
#endif
}
__device__ __forceinline__ void add_vec(const float (&numbers)[1], float* to) {
#ifdef STDEFORM_EMULATED
  atomicAdd(to, numbers[0]);
#else
  asm volatile("red.global.add.f32 [%0], %1;" : : "l"(to), "f"(numbers[0]));
#endif
}
__device__ __forceinline__ void add_vec(const float (&numbers)[2], float* to) {
#if defined(STDEFORM_EMULATED)
  atomicAdd(reinterpret_cast<float2*>(to), make_float2(numbers[0], numbers[1]));
#elif STDEFORM_CUDA_ARCH >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};"
               :
               : "l"(to), "f"(numbers[0]), "f"(numbers[1]));
#else
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    asm volatile("red.global.add.f32 [%0], %1;" : : "l"(to + i), "f"(numbers[i]));
  }
#endif
}
__device__ __forceinline__ void add_vec(const float (&numbers)[4], float* to) {
#if defined(STDEFORM_EMULATED)
  atomicAdd(reinterpret_cast<float4*>(to),
            make_float4(numbers[0], numbers[1], numbers[2], numbers[3]));
#elif STDEFORM_CUDA_ARCH >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3]));
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("red.global.add.f32 [%0], %1;" : : "l"(to + i), "f"(numbers[i]));
  }
#endif
}

// As PTX, because nvcc widens a loop-invariant b before the loop, and then multiplies by its upper
// half as well, which is zero.
__device__ __forceinline__ uint64_t product(uint32_t a, uint32_t b) {
#ifdef STDEFORM_EMULATED
  return uint64_t(a) * b;
#else
  uint64_t ab;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(ab) : "r"(a), "r"(b));
  return ab;
#endif
}
__device__ __forceinline__ uint64_t product(uint32_t a, uint64_t b) { return a * b; }

// Rows of channels, one per cell, from the lane's first channel on.
template <class T, class Layout>
class CellRows {
  // With 32 bits an address takes fewer instructions; rows farther apart take AnyLayout.
  using Stride = std::conditional_t<Layout::kWhole, uint32_t, uint64_t>;

 public:
  __device__ CellRows(T* first, int64_t stride)
      : first_(reinterpret_cast<uintptr_t>(first)), stride_(Stride(stride * int64_t(sizeof(T)))) {}

  __device__ __forceinline__ T* operator[](uint32_t cell) const {
    return reinterpret_cast<T*>(first_ + product(cell, stride_));
  }

 private:
  uint64_t first_;
  Stride stride_;  // in bytes
};

// Row (b, i, m) of an array [B, rows, M, D].
template <class T>
__device__ __forceinline__ T* row_of(const Array& array, uint32_t b, uint64_t i, uint32_t m) {
  return static_cast<T*>(array.data) + b * uint64_t(array.stride[0]) +
         i * uint64_t(array.stride[1]) + m * uint64_t(array.stride[2]);
}

// The number at an address in an array of T or of float.
template <class T>
__device__ __forceinline__ Compute<T> read(const Numbers& array, const unsigned char* at) {
  if (std::is_same_v<T, float> || array.are_float) return __ldg(reinterpret_cast<const float*>(at));
  Compute<T> number[1];
  widen<T>(load_vec<1>(reinterpret_cast<const T*>(at)), number);
  return number[0];
}

// Writes `x` to element `at` of an array of T or of float.
template <class T>
__device__ inline void write(const Array& to, int64_t at, Compute<T> x) {
  if (to.dtype == DType::f32) {
    static_cast<float*>(to.data)[at] = float(x);
  } else {
    from_real(x, static_cast<T*>(to.data)[at]);
  }
}

}  // namespace stdeform::cuda
