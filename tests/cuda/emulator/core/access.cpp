// The checked build: kernels compiled with -fsanitize=thread,... but linked with these functions
// instead of the sanitizers' libraries. Every access to memory passes through here: a point at
// which another thread may go first, and the checks of races.h.
#include <cstddef>
#include <cstdint>

#include "failure.h"
#include "races.h"
#include "scheduler.h"

namespace emulated {
namespace {

void on_access(const void* address, std::size_t bytes, Access kind, const void* code) {
  maybe_preempt();
  // The address of a call's return; the byte before it belongs to the access.
  check_access(address, bytes, kind, static_cast<const char*>(code) - 1);
}

}  // namespace
}  // namespace emulated

using emulated::Access;
using emulated::on_access;

#define EMULATED_ACCESS(NAME, BYTES, KIND) \
  void NAME(void* address) { on_access(address, BYTES, Access::KIND, __builtin_return_address(0)); }
#define EMULATED_ACCESSES(BYTES)                             \
  EMULATED_ACCESS(__tsan_read##BYTES, BYTES, read)           \
  EMULATED_ACCESS(__tsan_write##BYTES, BYTES, write)         \
  EMULATED_ACCESS(__tsan_unaligned_read##BYTES, BYTES, read) \
  EMULATED_ACCESS(__tsan_unaligned_write##BYTES, BYTES, write)

// The compare-and-swap loops of atomics.h: one atomic access each, however many rounds it takes.
#define EMULATED_ATOMICS(BITS, T)                                                               \
  T __tsan_atomic##BITS##_load(const volatile T* address, int) {                                \
    return __atomic_load_n(address, __ATOMIC_RELAXED);                                          \
  }                                                                                             \
  int __tsan_atomic##BITS##_compare_exchange_strong(volatile T* address, T* expected, T wanted, \
                                                    int, int) {                                 \
    on_access(const_cast<T*>(address), sizeof(T), Access::atomic, __builtin_return_address(0)); \
    return __atomic_compare_exchange_n(address, expected, wanted, false, __ATOMIC_RELAXED,      \
                                       __ATOMIC_RELAXED);                                       \
  }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
EMULATED_ACCESSES(1)
EMULATED_ACCESSES(2)
EMULATED_ACCESSES(4)
EMULATED_ACCESSES(8)
EMULATED_ACCESSES(16)
void __tsan_read_range(void* address, std::size_t bytes) {
  on_access(address, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  on_access(address, bytes, Access::write, __builtin_return_address(0));
}
EMULATED_ATOMICS(8, std::uint8_t)  // loads of it guard static variables
EMULATED_ATOMICS(32, std::uint32_t)
EMULATED_ATOMICS(64, std::uint64_t)

}  // extern "C"

// What C++ leaves undefined. The compiler calls these functions with where it happens, and more.
namespace {

// As the compiler lays them out.
struct Place {
  const char* file;
  std::uint32_t line, column;
};
struct TypeMismatch {
  Place place;
  const struct {
    std::uint16_t kind, info;
    char name[1];
  }* type;
  unsigned char log_alignment, kind;
};

}  // namespace

#define EMULATED_UNDEFINED(NAME, RULE)                                            \
  extern "C" void __ubsan_handle_##NAME(const Place* at) {                        \
    if (emulated::current) emulated::fail(RULE ", at %s:%u", at->file, at->line); \
    emulated::note_failure(RULE ", at %s:%u", at->file, at->line);                \
  }
EMULATED_UNDEFINED(out_of_bounds, "index out of bounds")
EMULATED_UNDEFINED(shift_out_of_bounds, "shift too far")
EMULATED_UNDEFINED(add_overflow, "signed overflow")
EMULATED_UNDEFINED(sub_overflow, "signed overflow")
EMULATED_UNDEFINED(mul_overflow, "signed overflow")
EMULATED_UNDEFINED(negate_overflow, "signed overflow")
EMULATED_UNDEFINED(divrem_overflow, "signed overflow")

// -fsanitize=alignment calls this for an access that is not aligned to its type: a vector load that
// a device would refuse.
extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* at, std::uintptr_t address) {
  if (!emulated::current) return;
  emulated::fail("misaligned address %#zx of type %s, which needs %u bytes, at %s:%u",
                 static_cast<std::size_t>(address), at->type->name, 1u << at->log_alignment,
                 at->place.file, at->place.line);
}
