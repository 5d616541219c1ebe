// Atomic additions to global and shared memory, relaxed as CUDA's are: a compare-and-swap loop, so
// that the checked build sees that they are atomic.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "failure.h"
#include "thread.h"

namespace emulated {

EMULATED_DEVICE void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes == 0) return;
  fail("misaligned atomic operation on %zu bytes at %p", bytes, address);
}

// Replaces *address by change(*address) and returns what it was.
template <class T, class F>
EMULATED_DEVICE T atomically(T* address, F change) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  static_assert(sizeof(Bits) == sizeof(T));
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
