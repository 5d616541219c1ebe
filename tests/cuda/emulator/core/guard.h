// Arrays between two pages that cannot be touched, so that running off them faults at once, and
// the handler that turns the fault into a failure of the launch.
#pragma once

#include <cstddef>

namespace emulated {

// Where the array lies: its end or its start at a page that faults. Alignment may leave slack on
// that side; it is filled, and release_guarded looks whether it still is.
enum class Side { end, start };

// `alignment` is a power of two, at most a page. Throws std::bad_alloc.
void* allocate_guarded(std::size_t bytes, std::size_t alignment, Side side);

// Returns whether the slack around the array is untouched.
bool release_guarded(void* array);

// The array whose pages hold `address`, with those that fault; bytes is 0 if there is none.
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

}  // namespace emulated
