#include "failure.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "scheduler.h"

namespace emulated {
namespace {

char message[2048] = "";
const char* kernel_name = "";
const char* launcher_name = "";
bool has_failed = false;

// Appends to the message; what does not fit is cut off.
int append(int at, const char* format, va_list arguments) {
  const int room = static_cast<int>(sizeof message) - at;
  const int written = std::vsnprintf(message + at, room, format, arguments);
  return at + (written < room ? written : room - 1);
}

int append(int at, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  at = append(at, format, arguments);
  va_end(arguments);
  return at;
}

}  // namespace

void begin_launch(const char* kernel, const char* launcher) {
  kernel_name = kernel;
  launcher_name = launcher;
}

bool failed() { return has_failed; }
const char* failure_message() { return has_failed ? message : ""; }
void forget_failure() { has_failed = false; }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int at = append(0, "%s", kernel_name);
  if (current) {
    const uint3 &b = current->block, &t = current->index;
    at = append(at, ", block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  }
  at = append(at, ": ");
  at = append(at, format, arguments);
  append(at, "; launched by %s", launcher_name);
  va_end(arguments);
  has_failed = true;
  if (!current) {
    std::fprintf(stderr, "%s\n", message);
    std::abort();
  }
  abandon_block();
}

void note_failure(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int at = append(append(0, "%s: ", kernel_name), format, arguments);
  append(at, "; launched by %s", launcher_name);
  va_end(arguments);
  has_failed = true;
}

const char* code_location(const void* address) {
  static char texts[4][64];
  static int next = 0;
  char* const text = texts[next++ % 4];
  Dl_info info;
  std::size_t offset = reinterpret_cast<std::size_t>(address);
  if (dladdr(address, &info)) offset -= reinterpret_cast<std::size_t>(info.dli_fbase);
  std::snprintf(text, sizeof texts[0], "{code +0x%zx}", offset);
  return text;
}

}  // namespace emulated
