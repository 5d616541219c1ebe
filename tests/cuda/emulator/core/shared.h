// A block's shared memory: each array on its own between guard pages, filled with bytes that read
// as NaN in every floating-point type, anew for every block.
#pragma once

#include <cstddef>

namespace emulated {

// `site` tells the arrays of a kernel apart.
void* static_shared(const void* site, std::size_t bytes, std::size_t alignment);
void* dynamic_shared();

constexpr std::size_t kStaticSharedLimit = 48 << 10;  // of a kernel, on every architecture
constexpr std::size_t kBlockSharedLimit = 227 << 10;  // of a block, compute capability 9.0

void reset_shared(std::size_t dynamic_bytes);  // before every block
void release_shared();                         // after the launch

// Says whether an address lies in a shared array.
bool in_shared(const void* address);

}  // namespace emulated

#define EMULATED_SHARED(T, name, n)                      \
  T(&name)                                               \
  [n] = *static_cast<T(*)[n]>(::emulated::static_shared( \
      [] {                                               \
        static char site;                                \
        return &site;                                    \
      }(),                                               \
      sizeof(T) * (n), alignof(T)))
#define EMULATED_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::emulated::dynamic_shared())
