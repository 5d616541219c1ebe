// What AddressSanitizer and ThreadSanitizer need to know of stacks, switches and barriers; in
// other builds nothing. The emulator itself is compiled without -fsanitize: it is not what is
// tested, and ThreadSanitizer would see every switch as a race.
#pragma once

#include <cstddef>

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATED_TSAN
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

namespace emulated {

#ifdef EMULATED_TSAN
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
// Under a sanitizer faults are its own to report.
#if defined(EMULATED_ASAN) || defined(EMULATED_TSAN)
constexpr bool kCatchFaults = false;
#else
constexpr bool kCatchFaults = true;
#endif

// Everything before a release happens before what follows an acquire of the same address.
inline void release([[maybe_unused]] void* point) {
#ifdef EMULATED_TSAN
  __tsan_release(point);
#endif
}
inline void acquire([[maybe_unused]] void* point) {
#ifdef EMULATED_TSAN
  __tsan_acquire(point);
#endif
}

// ThreadSanitizer's idea of who runs. A switch orders nothing: only barriers do.
class Identity {
 public:
  void adopt() {
#ifdef EMULATED_TSAN
    handle_ = __tsan_get_current_fiber();
#endif
  }
  void create() {
#ifdef EMULATED_TSAN
    handle_ = __tsan_create_fiber(0);
#endif
  }
  void become() const {
#ifdef EMULATED_TSAN
    __tsan_switch_to_fiber(handle_, kNoOrder);
#endif
  }
  // The caller is `this`. What it did happens before what `other` does next; and the reverse.
  void precede([[maybe_unused]] const Identity& other) const {
#ifdef EMULATED_TSAN
    __tsan_switch_to_fiber(other.handle_, 0);
    __tsan_switch_to_fiber(handle_, kNoOrder);
#endif
  }
  void follow([[maybe_unused]] const Identity& other) const {
#ifdef EMULATED_TSAN
    __tsan_switch_to_fiber(other.handle_, kNoOrder);
    __tsan_switch_to_fiber(handle_, 0);
#endif
  }

 private:
#ifdef EMULATED_TSAN
  static constexpr unsigned kNoOrder = 1;
  void* handle_ = nullptr;
#endif
};

}  // namespace emulated
