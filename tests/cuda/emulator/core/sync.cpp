#include "sync.h"

#include <cstring>
#include <vector>

#include "failure.h"
#include "races.h"
#include "scheduler.h"

namespace emulated {
namespace {

int arrived;
Site site_here;

void finish() {
  arrived = 0;
  block_met();
  for (Thread& thread : threads()) {
    if (thread.state == State::at_barrier) wake(thread);
  }
}

}  // namespace

void reset_barrier() { arrived = 0; }

void barrier_thread_ended() {
  if (arrived && arrived == threads_alive()) finish();
}

void barrier(Site site) {
  current->site = site;
  if (!arrived) {
    site_here = site;
  } else if (site_here.line != site.line) {
    fail("divergent __syncthreads: here %s:%d, other threads of the block wait at %s:%d", site.file,
         site.line, site_here.file, site_here.line);
  }
  ++arrived;
  if (arrived == threads_alive()) {
    finish();
  } else {
    wait(State::at_barrier);
  }
}

namespace {

// An operation that waits for lanes.
struct Pending {
  WarpKind kind;
  unsigned mask, arrived;
  Site site;
};

struct Warp {
  unsigned alive = 0;
  std::vector<Pending> pending;  // with disjoint masks
};
std::vector<Warp> warps;

bool is_shuffle(WarpKind kind) {
  return kind >= WarpKind::shuffle_index && kind <= WarpKind::shuffle_xor;
}

// The lane that `lane` reads. Where the rule leads out of its part of the warp, it reads itself.
int source_lane(WarpKind kind, int lane, std::int64_t argument, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  std::int64_t source = lane;
  switch (kind) {
    case WarpKind::shuffle_index: return first + static_cast<int>(argument & (width - 1));
    case WarpKind::shuffle_up: source -= argument; break;
    case WarpKind::shuffle_down: source += argument; break;
    default: source ^= argument;
  }
  // An exclusive or may reach into an earlier part of the warp, but not into a later one.
  const bool too_low = kind == WarpKind::shuffle_xor ? source < 0 : source < first;
  return too_low || source > last ? lane : static_cast<int>(source);
}

// The votes of a ballot, the same for all lanes.
std::uint32_t ballot(const Pending& operation, const Thread* lanes) {
  std::uint32_t votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(operation.arrived >> lane & 1)) continue;
    std::uint32_t vote;
    std::memcpy(&vote, lanes[lane].given, sizeof vote);
    votes |= vote << lane;
  }
  return votes;
}

// Gives all lanes their results and wakes those that wait.
void finish(Warp& warp, std::size_t index) {
  const Pending operation = warp.pending[index];
  warp.pending.erase(warp.pending.begin() + index);
  Thread* const lanes = &threads()[(&warp - warps.data()) * kWarp];
  if (operation.kind == WarpKind::sync) lanes_met(lanes->warp(), operation.arrived);
  const std::uint32_t votes = operation.kind == WarpKind::ballot ? ballot(operation, lanes) : 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(operation.arrived >> lane & 1)) continue;
    Thread& thread = lanes[lane];
    if (is_shuffle(operation.kind)) {
      const int source = source_lane(operation.kind, lane, thread.argument, thread.width);
      if (!(operation.arrived >> source & 1)) {
        current = &thread;
        fail("%s:%d: shuffle reads lane %d, which does not take part (mask %08x)", thread.site.file,
             thread.site.line, source, operation.mask);
      }
      std::memcpy(thread.taken, lanes[source].given, thread.bytes);
    } else if (thread.taken) {
      std::memcpy(thread.taken, &votes, sizeof votes);
    }
    if (thread.state == State::at_warp_operation) wake(thread);
  }
}

// The operation that this lane's call belongs to, or a new one.
std::size_t find_or_begin(Warp& warp, WarpKind kind, unsigned mask, Site site) {
  for (std::size_t i = 0; i < warp.pending.size(); ++i) {
    const Pending& other = warp.pending[i];
    if (!(other.mask & mask)) continue;
    if (other.mask != mask || other.kind != kind || other.site.line != site.line) {
      fail(
          "%s:%d: lanes of one warp meet in different warp operations (mask %08x here; mask %08x "
          "at %s:%d)",
          site.file, site.line, mask, other.mask, other.site.file, other.site.line);
    }
    return i;
  }
  warp.pending.push_back({kind, mask, 0, site});
  return warp.pending.size() - 1;
}

}  // namespace

void reset_warps(int threads) {
  warps.assign((threads + kWarp - 1) / kWarp, Warp());
  for (int i = 0; i < threads; ++i) warps[i / kWarp].alive |= 1u << i % kWarp;
}

void warp_thread_ended(const Thread& thread) {
  Warp& warp = warps[thread.warp()];
  warp.alive &= ~(1u << thread.lane());
  for (std::size_t i = warp.pending.size(); i-- > 0;) {
    if (warp.pending[i].arrived == (warp.pending[i].mask & warp.alive)) finish(warp, i);
  }
}

void warp_operation(WarpKind kind, unsigned mask, const void* given, void* taken, unsigned bytes,
                    std::int64_t argument, int width, Site site) {
  Thread& thread = *current;
  Warp& warp = warps[thread.warp()];
  const unsigned self = 1u << thread.lane();
  if (!(mask & self)) {
    fail("%s:%d: mask %08x lacks the calling lane %d", site.file, site.line, mask, thread.lane());
  }
  if (width < 1 || width > kWarp || (width & (width - 1))) {
    fail("%s:%d: shuffle width must be a power of two of at most 32, got %d", site.file, site.line,
         width);
  }
  thread.site = site;
  thread.argument = argument;
  thread.width = width;
  thread.bytes = bytes;
  thread.taken = taken;
  if (given) std::memcpy(thread.given, given, bytes);
  const std::size_t index = find_or_begin(warp, kind, mask, site);
  Pending& operation = warp.pending[index];
  operation.arrived |= self;
  if (operation.arrived == (mask & warp.alive)) {
    finish(warp, index);
  } else {
    wait(State::at_warp_operation);
  }
}

}  // namespace emulated
