// Stacks that take turns on one thread of the processor: one per CUDA thread, and the launcher's.
#pragma once

#include <cstddef>

namespace emulated {

struct Fiber {
  void* position = nullptr;  // where it goes on: its stack pointer, or its ucontext_t
  char* stack = nullptr;     // lowest address; the page below it cannot be touched
  std::size_t stack_size = 0;
};

// A fiber that will run `entry`, which must never return. `slot` < kMaxFibers chooses its stack.
constexpr int kMaxFibers = 1024;
void start_fiber(Fiber& fiber, int slot, void (*entry)());

// Leaves `from` for `to`; comes back at a switch to `from`. A `from` of null is never come back to.
void switch_fiber(Fiber* from, Fiber& to);

// Whether an address is on a stack of this file, or on the page below one.
bool on_stack(const void* address);
bool below_stack(const void* address);

}  // namespace emulated
