// Atomic operations on global and shared memory, relaxed as CUDA's are: a compare-and-swap loop, so
// that sanitizers see them for what they are.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "failure.h"
#include "thread.h"

namespace emulated {

template <std::size_t bytes>
struct Word;
template <>
struct Word<2> {
  using type = std::uint16_t;
};
template <>
struct Word<4> {
  using type = std::uint32_t;
};
template <>
struct Word<8> {
  using type = std::uint64_t;
};

EMULATED_DEVICE void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes == 0) return;
  fail("misaligned atomic operation on %zu bytes at %p", bytes, address);
}

// Replaces *address by change(*address) and returns what it was.
template <class T, class F>
EMULATED_DEVICE T atomically(T* address, F change) {
  using Bits = typename Word<sizeof(T)>::type;
  check_alignment(address, sizeof(T));
  Bits* const word = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  T old, fresh;
  do {
    std::memcpy(static_cast<void*>(&old), &before, sizeof old);
    fresh = change(old);
    std::memcpy(&after, static_cast<const void*>(&fresh), sizeof fresh);
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  return old;
}

}  // namespace emulated

#define EMULATED_ATOMIC_ADD(T, SUM)                                        \
  EMULATED_DEVICE T atomicAdd(T* address, T value) {                       \
    return emulated::atomically(address, [&](T old) -> T { return SUM; }); \
  }
EMULATED_ATOMIC_ADD(int, old + value)
EMULATED_ATOMIC_ADD(unsigned, old + value)
EMULATED_ATOMIC_ADD(unsigned long long, old + value)
EMULATED_ATOMIC_ADD(float, old + value)
EMULATED_ATOMIC_ADD(double, old + value)
EMULATED_ATOMIC_ADD(__half, __hadd(old, value))
EMULATED_ATOMIC_ADD(__half2, __hadd2(old, value))
EMULATED_ATOMIC_ADD(__nv_bfloat16, __hadd(old, value))
EMULATED_ATOMIC_ADD(__nv_bfloat162, __hadd2(old, value))
#undef EMULATED_ATOMIC_ADD

// Each component is atomic by itself, the vector is not.
EMULATED_DEVICE float2 atomicAdd(float2* address, float2 value) {
  emulated::check_alignment(address, sizeof value);
  return {atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y)};
}
EMULATED_DEVICE float4 atomicAdd(float4* address, float4 value) {
  emulated::check_alignment(address, sizeof value);
  return {atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y),
          atomicAdd(&address->z, value.z), atomicAdd(&address->w, value.w)};
}

#define EMULATED_ATOMIC(NAME, RESULT)                                                          \
  template <class T>                                                                           \
  EMULATED_DEVICE T NAME(T* address, T value) {                                                \
    return emulated::atomically(address, [&]([[maybe_unused]] T old) -> T { return RESULT; }); \
  }
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMin, value < old ? value : old)
EMULATED_ATOMIC(atomicMax, old < value ? value : old)
EMULATED_ATOMIC(atomicAnd, old& value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicExch, value)
#undef EMULATED_ATOMIC

template <class T>
EMULATED_DEVICE T atomicCAS(T* address, T expected, T value) {
  return emulated::atomically(address, [&](T old) { return old == expected ? value : old; });
}
// Counts up to `last`, then begins anew at zero.
EMULATED_DEVICE unsigned atomicInc(unsigned* address, unsigned last) {
  return emulated::atomically(address, [&](unsigned old) { return old >= last ? 0 : old + 1; });
}
