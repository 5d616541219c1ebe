#include "races.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "failure.h"
#include "memory.h"
#include "scheduler.h"

namespace emulated {
namespace {

// An access as later ones see it. Its moment is the block it belongs to, the barriers that the
// block had passed, and the __syncwarps that its thread had.
struct Seen {
  const void* code;
  std::uint64_t block;  // 0: nothing
  std::uint32_t barriers, syncs;
  std::uint16_t thread;
  std::uint8_t bytes;  // of the eight, one bit each
  Access kind;
};

// What is known of eight bytes of memory. More readers than fit push each other out, so a race with
// one of many may go unseen; a writer stays until the next.
struct Cell {
  std::uint64_t block_written = 0;
  std::uint8_t bytes_written = 0;
  Seen seen[6] = {};
};

constexpr std::size_t kPage = 4096, kCell = 8;
struct Page {
  bool shared;
  Extent array;
  std::array<Cell, kPage / kCell> cells = {};
};

std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;  // by address / kPage
std::uintptr_t last_number;
Page* last_page;

std::uint64_t block, first_block_of_launch;
std::uint32_t barriers;
// Of each thread: how many __syncwarps it had, and how many of each lane's it has heard of.
struct Clock {
  std::uint32_t own = 1;
  std::array<std::uint32_t, kWarp> heard = {};
};
std::vector<Clock> clocks;

Page& page_of(const char* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address) / kPage;
  if (number == last_number && last_page) return *last_page;
  std::unique_ptr<Page>& page = pages[number];
  if (!page) {
    page = std::make_unique<Page>();
    page->array = find_guarded(address);
    page->shared = in_shared(page->array.first ? page->array.first : address);
  }
  last_number = number;
  return *(last_page = page.get());
}

bool ordered(const Seen& before, const Thread& now, bool shared) {
  // Every block has shared memory of its own, even if it is where another's was.
  if (before.block != block) return shared || before.block < first_block_of_launch;
  if (before.barriers != barriers || before.thread == now.number) return true;
  if (before.thread / kWarp != now.warp()) return false;
  return clocks[now.number].heard[before.thread % kWarp] >= before.syncs;
}

bool conflict(Access a, Access b) { return a != b || a == Access::write; }

const char* verb(Access kind) {
  return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "atomically changes";
}

[[noreturn]] void fail_race(const Seen& before, const Seen& now, bool shared, const char* address) {
  const char* const memory = shared ? "shared" : "global";
  const Thread& other = threads()[before.block == block ? before.thread : 0];
  if (before.block != block) {
    fail("race: %s %s memory at %p, at %s, that another block %s, at %s", verb(now.kind), memory,
         address, code_location(now.code), verb(before.kind), code_location(before.code));
  }
  fail(
      "race: %s %s memory at %p, at %s, that thread (%u, %u, %u) %s, at %s, with no barrier "
      "between",
      verb(now.kind), memory, address, code_location(now.code), other.index.x, other.index.y,
      other.index.z, verb(before.kind), code_location(before.code));
}

// Keeps the access where nothing, or what it makes irrelevant, or else a reader was.
void remember(Cell& cell, const Seen& access, const Thread& thread, bool shared) {
  Seen* place = nullptr;
  for (Seen& seen : cell.seen) {
    const bool covered = !(seen.bytes & ~access.bytes) && ordered(seen, thread, shared) &&
                         (access.kind == Access::write || seen.kind == access.kind);
    if (!seen.block || seen.block < first_block_of_launch || covered) {
      if (place) place->block = 0;
      place = &seen;
    }
  }
  for (unsigned tries = 0; !place && tries < 16; ++tries) {
    Seen& candidate = cell.seen[random_number() % std::size(cell.seen)];
    if (candidate.kind == Access::read || tries == 15) place = &candidate;
  }
  *place = access;
}

void check_cell(Page& page, const char* address, Seen access, const Thread& thread) {
  Cell& cell = page.cells[reinterpret_cast<std::uintptr_t>(address) % kPage / kCell];
  if (cell.block_written != block) cell.block_written = block, cell.bytes_written = 0;
  if (access.kind == Access::write) {
    cell.bytes_written |= access.bytes;
  } else if (page.shared && (access.bytes & ~cell.bytes_written)) {
    fail("reads shared memory at %p that no thread of the block has written, at %s", address,
         code_location(access.code));
  }
  for (const Seen& seen : cell.seen) {
    if (seen.block && (seen.bytes & access.bytes) && conflict(seen.kind, access.kind) &&
        !ordered(seen, thread, page.shared)) {
      fail_race(seen, access, page.shared, address);
    }
  }
  remember(cell, access, thread, page.shared);
}

bool within(const char* address, const void* first, std::size_t bytes) {
  return static_cast<std::size_t>(address - static_cast<const char*>(first)) < bytes;
}

}  // namespace

void races_begin_launch() {
  pages.clear();
  last_page = nullptr;
  first_block_of_launch = block + 1;
}

void races_begin_block(int threads) {
  ++block;
  barriers = 0;
  clocks.assign(threads, Clock());
}

void block_met() { ++barriers; }

void lanes_met(int warp, unsigned mask) {
  std::array<std::uint32_t, kWarp> known = {};
  const auto lane_clock = [&](int lane) -> Clock& { return clocks[warp * kWarp + lane]; };
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Clock& clock = lane_clock(lane);
    for (int i = 0; i < kWarp; ++i) known[i] = std::max(known[i], clock.heard[i]);
    known[lane] = std::max(known[lane], clock.own);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    lane_clock(lane).heard = known;
    ++lane_clock(lane).own;
  }
}

void check_access(const void* memory, std::size_t bytes, Access kind, const void* code) {
  if (!current) return;
  const Thread& thread = *current;
  const char* const first = static_cast<const char*>(memory);
  if (within(first, thread.fiber.stack, thread.fiber.stack_size)) return;
  if (on_stack(first))
    fail("%s another thread's local memory at %s", verb(kind), code_location(code));
  // The emulator's own, read through threadIdx and the like.
  if (within(first, threads().data(), threads().size() * sizeof(Thread))) return;
  const char* const end = first + bytes;
  for (const char* at = first; at < end;) {
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(at) % kCell;
    const std::size_t count = std::min<std::size_t>(kCell - offset, end - at);
    Page& page = page_of(at);
    if (page.array.first && !(within(at, page.array.first, page.array.bytes) &&
                              within(at + count - 1, page.array.first, page.array.bytes))) {
      fail_access(at, code);
    }
    const auto mask = static_cast<std::uint8_t>(((1u << count) - 1) << offset);
    check_cell(page, at,
               {code, block, barriers, clocks[thread.number].own,
                static_cast<std::uint16_t>(thread.number), mask, kind},
               thread);
    at += count;
  }
}

}  // namespace emulated
