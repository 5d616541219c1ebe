// The C interface of a library of emulated kernels, for tests/cuda/emulator/emulator.py.
#include <new>

#include "failure.h"
#include "memory.h"
#include "runtime.h"
#include "scheduler.h"

using namespace emulated;

#define EMULATED_EXPORT extern "C" __attribute__((visibility("default")))

EMULATED_EXPORT void emulated_set_schedule(int order, std::uint64_t seed, unsigned preempt_one_in) {
  // Neighbouring seeds must not begin alike, and the state must not be zero.
  schedule = {Order(order), (seed + 1) * 0x9e3779b97f4a7c15u | 1, preempt_one_in};
}

EMULATED_EXPORT void emulated_set_multiprocessors(int number) { multiprocessors = number; }

EMULATED_EXPORT int emulated_current_device() { return current_device(); }

#ifdef EMULATED_COVERAGE  // libgcov has these
extern "C" void __gcov_reset();
extern "C" void __gcov_dump();
EMULATED_EXPORT void emulated_reset_counts() { __gcov_reset(); }
EMULATED_EXPORT void emulated_write_counts() { __gcov_dump(); }
#endif

namespace {

struct LaunchRecord {
  const char *kernel, *launcher;
  unsigned grid[3], block[3];
  std::uint64_t dynamic_bytes, stream;
  int device;
};

}  // namespace

// Takes the oldest launch off the list; false if there is none.
EMULATED_EXPORT bool emulated_take_launch(LaunchRecord* out) {
  if (launches().empty()) return false;
  const Launch& launch = launches().front();
  *out = {launch.kernel,
          launch.launcher,
          {launch.grid.x, launch.grid.y, launch.grid.z},
          {launch.block.x, launch.block.y, launch.block.z},
          launch.dynamic_bytes,
          reinterpret_cast<std::uint64_t>(launch.stream),
          launch.device};
  launches().erase(launches().begin());
  return true;
}

// What has failed since the last call, or "".
EMULATED_EXPORT const char* emulated_take_failure() {
  const char* const message = failure_message();
  forget_failure();
  return message;
}

EMULATED_EXPORT void* emulated_allocate(std::size_t bytes, std::size_t alignment, bool at_start) {
  try {
    return allocate_guarded(bytes, alignment, at_start ? Side::start : Side::end);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// False if something was written beside the array.
EMULATED_EXPORT bool emulated_release(void* array) { return release_guarded(array); }
