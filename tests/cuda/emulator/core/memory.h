// Memory that kernels access. Arrays are between two pages that cannot be touched, so that running
// off them faults at once, and a handler turns the fault into a failure of the launch. A block's
// shared arrays are such arrays too, filled with bytes that read as NaN in every floating-point
// type, again for every block.
#pragma once

#include <cstddef>

namespace emulated {

// Where the array is: its end or its start at a page that faults. Alignment may leave slack on
// that side; it is filled, and release_guarded looks whether it still is.
enum class Side { end, start };

// `alignment` is a power of two, at most a page. Throws std::bad_alloc.
void* allocate_guarded(std::size_t bytes, std::size_t alignment, Side side);

// Returns whether the slack around the array is untouched.
bool release_guarded(void* array);

// The array with `address` on its pages, also those that fault; bytes is 0 if there is none.
struct Extent {
  const char* first = nullptr;
  std::size_t bytes = 0;
};
Extent find_guarded(const void* address);

// While one lives, an illegal access by a kernel fails the launch instead of the process.
class FaultHandler {
 public:
  FaultHandler();
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;
};

// Fails the launch for an access outside of any array.
[[noreturn]] void fail_access(const void* address, const void* code);

// `site` distinguishes the arrays of a kernel.
void* static_shared(const void* site, std::size_t bytes, std::size_t alignment);
void* dynamic_shared();

constexpr std::size_t kStaticSharedLimit = 48 << 10;  // of a kernel, on every architecture
constexpr std::size_t kBlockSharedLimit = 227 << 10;  // of a block, compute capability 9.0

void reset_shared(std::size_t dynamic_bytes);  // before every block
void release_shared();                         // after the launch

// Whether an address is in a shared array.
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
