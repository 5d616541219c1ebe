// Where -fsanitize=alignment, without its library, brings an access whose address does not fit its
// type: a vector load that a device would refuse.
#include <cstddef>
#include <cstdint>

#include "failure.h"
#include "thread.h"

namespace {

// As the compiler lays it out.
struct TypeMismatch {
  const char* file;
  std::uint32_t line, column;
  const struct {
    std::uint16_t kind, info;
    char name[1];
  }* type;
  unsigned char log_alignment, kind;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* at, std::uintptr_t address) {
  if (!emulated::current) return;
  emulated::fail("misaligned address %#zx of type %s, which needs %u bytes, at %s:%u",
                 static_cast<std::size_t>(address), at->type->name, 1u << at->log_alignment,
                 at->file, at->line);
}
