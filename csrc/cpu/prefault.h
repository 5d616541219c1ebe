// Large results, whose pages the threads of a team fetch from the system before they write there.
//
// Such memory usually has just been mapped by the allocator, and the system zeroes a page when it
// is first touched. Heads are interleaved in a result, so threads that work on different heads come
// to the same page at about the same time, and each pays for it: up to twice the page faults, in
// the middle of the work. Asking for blocks ahead of it, each by one thread, costs a fraction. It
// is advice: refused or unknown, pages come as ever. Huge pages would cost less still, but ten
// times as much on virtual machines that hand free memory back to their host when calls are seconds
// apart.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#ifndef MADV_POPULATE_WRITE  // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif
#endif

namespace stdeform {
namespace {

class Pages {
  static constexpr size_t kBlock = size_t(2) << 20;
  static constexpr size_t kLarge = 2 * kBlock;  // smaller arrays are not worth a question

 public:
  // An array that will be written in full.
  void add(const void* data, size_t bytes) {
    if (!data || bytes < kLarge) return;
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
    for (uintptr_t at = begin; at < end;) {
      const uintptr_t next = std::min((at / kBlock + 1) * kBlock, end);
      blocks_.push_back({at, next});
      at = next;
    }
  }

  // Called by every thread of a parallel region; a thread does not wait for the others.
  void fetch() const {
#pragma omp for schedule(dynamic, 1) nowait
    for (size_t i = 0; i < blocks_.size(); ++i) populate(blocks_[i].begin, blocks_[i].end);
  }

 private:
  struct Block {
    uintptr_t begin, end;
  };

#ifdef __linux__
  static uintptr_t page_of(uintptr_t address) { return address / page_size() * page_size(); }
  static size_t page_size() {
    static const auto size = size_t(sysconf(_SC_PAGESIZE));
    return size;
  }

  // Memory that was used before is there already; one page stands for the block.
  static void populate(uintptr_t begin, uintptr_t end) {
    unsigned char present = 0;
    const uintptr_t middle = page_of(begin + (end - begin) / 2);
    if (mincore(reinterpret_cast<void*>(middle), page_size(), &present) == 0 && (present & 1))
      return;
    const uintptr_t first = page_of(begin);
    (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE);
  }
#else
  static void populate(uintptr_t, uintptr_t) {}
#endif

  std::vector<Block> blocks_;
};

}  // namespace
}  // namespace stdeform
