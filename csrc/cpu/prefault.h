// Pre-faulting of large results: the threads populate the pages before they write to them.
//
// The allocator usually has just mapped such memory, and the system zeroes a page at the first
// access to it. The heads of a result are interleaved, so threads that work on different heads
// touch the same page at about the same time, and each takes a page fault: up to twice as many
// faults, in the middle of the work. Populating whole blocks beforehand, each by one thread, is
// much cheaper. The request is only advice: if the system refuses it or does not know it, the pages
// are faulted in as usual. Huge pages would be cheaper still; but on virtual machines that return
// free memory to their host they cost ten times as much when calls are seconds apart.
#pragma once

#include <algorithm>
#include <atomic>
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

class Prefault {
  static constexpr size_t kBlock = size_t(2) << 20;
  static constexpr size_t kLarge = 2 * kBlock;  // smaller arrays do not repay the system call

 public:
  // Adds an array that will be written in full.
  void add(const void* data, size_t bytes) {
    if (!data || bytes < kLarge) return;
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
    for (uintptr_t at = begin; at < end;) {
      const uintptr_t next = std::min((at / kBlock + 1) * kBlock, end);
      blocks_.push_back({at, next});
      at = next;
    }
  }

  // Each thread populates blocks as long as there are any. No thread waits for the others.
  void run() const {
    for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < blocks_.size();) {
      populate(blocks_[i].begin, blocks_[i].end);
    }
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

  // Memory that was in use before needs nothing; the page in the middle decides for the block.
  static void populate(uintptr_t begin, uintptr_t end) {
    unsigned char residency = 0;
    const uintptr_t middle = page_of(begin + (end - begin) / 2);
    if (mincore(reinterpret_cast<void*>(middle), page_size(), &residency) == 0 && (residency & 1))
      return;
    const uintptr_t first = page_of(begin);
    (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE);
  }
#else
  static void populate(uintptr_t, uintptr_t) {}
#endif

  std::vector<Block> blocks_;
  mutable std::atomic<size_t> next_{0};  // block
};

}  // namespace
}  // namespace stdeform
