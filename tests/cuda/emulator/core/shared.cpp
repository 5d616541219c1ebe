#include "shared.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "failure.h"
#include "guard.h"
#include "scheduler.h"

namespace emulated {
namespace {

struct Array {
  const void* site;  // null: the dynamic one
  std::size_t bytes;
  void* data;
  bool in_use;  // by the running block
};
std::vector<Array> arrays;
std::size_t dynamic_bytes_here;

#if defined(EMULATED_TSAN)

// One piece of memory, mapped anew for every block: with the old mapping ThreadSanitizer forgets
// the accesses of the block before. Not by a kernel's thread, whose write it would take the mapping
// for.
char* piece = nullptr;
std::size_t piece_used = 0;
constexpr std::size_t kPiece = kBlockSharedLimit + (64 << 10);  // alignment leaves gaps

void map_piece() {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (piece ? MAP_FIXED : 0);
  void* const mapped = mmap(piece, kPiece, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  piece = static_cast<char*>(mapped);
  piece_used = 0;
  arrays.clear();
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  piece_used = (piece_used + alignment - 1) / alignment * alignment;
  void* const data = piece + piece_used;
  piece_used += bytes;
  if (piece_used > kPiece) fail("too much shared memory");
  return data;
}
void release_array(const Array&) {}

#elif defined(EMULATED_ASAN)

void map_piece() {}
void* allocate(std::size_t bytes, std::size_t alignment) {
  void* data = nullptr;
  if (posix_memalign(&data, std::max(alignment, sizeof(void*)), bytes)) std::abort();
  return data;
}
void release_array(const Array& array) { std::free(array.data); }

#else

void map_piece() {}
void* allocate(std::size_t bytes, std::size_t alignment) {
  return allocate_guarded(bytes, alignment, Side::end);
}
void release_array(const Array& array) {
  if (release_guarded(array.data)) return;
  note_failure("a write beside a shared array of %zu bytes", array.bytes);
}

#endif

// An array begins its life in a block.
void fill(const Array& array) {
  volatile unsigned char* const bytes = static_cast<unsigned char*>(array.data);
  for (std::size_t i = 0; i < array.bytes; ++i) bytes[i] = 0xff;
}

std::size_t bytes_in_use(bool only_static) {
  std::size_t sum = 0;
  for (const Array& array : arrays) {
    if (array.in_use && !(only_static && !array.site)) sum += array.bytes;
  }
  return sum;
}

void* get(const void* site, std::size_t bytes, std::size_t alignment) {
  const auto found = std::find_if(arrays.begin(), arrays.end(), [&](const Array& array) {
    return array.site == site && array.bytes == bytes;
  });
  Array& array =
      found != arrays.end()
          ? *found
          : (arrays.push_back({site, bytes, allocate(bytes, alignment), false}), arrays.back());
  if (!array.in_use) {
    array.in_use = true;
    fill(array);
    if (bytes_in_use(true) > kStaticSharedLimit || bytes_in_use(false) > kBlockSharedLimit) {
      fail("%zu bytes of shared memory, %zu of them static, are too many", bytes_in_use(false),
           bytes_in_use(true));
    }
    statistics.shared_bytes = std::max<std::uint64_t>(statistics.shared_bytes, bytes_in_use(false));
  }
  return array.data;
}

}  // namespace

void* static_shared(const void* site, std::size_t bytes, std::size_t alignment) {
  return get(site, bytes, alignment);
}

void* dynamic_shared() { return get(nullptr, dynamic_bytes_here, 16); }

void reset_shared(std::size_t dynamic_bytes) {
  dynamic_bytes_here = dynamic_bytes;
  map_piece();
  for (Array& array : arrays) array.in_use = false;
}

void release_shared() {
  for (const Array& array : arrays) release_array(array);
  arrays.clear();
}

bool in_shared(const void* address) {
  return std::any_of(arrays.begin(), arrays.end(), [&](const Array& array) {
    const auto offset = static_cast<const char*>(address) - static_cast<const char*>(array.data);
    return offset >= 0 && static_cast<std::size_t>(offset) < array.bytes;
  });
}

}  // namespace emulated
