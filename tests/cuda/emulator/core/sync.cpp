#include "sync.h"

#include <vector>

#include "failure.h"
#include "races.h"
#include "scheduler.h"

namespace emulated {
namespace {

int arrived;
Site site_here;
// Two in turn: a thread may arrive at the next barrier before another has left this one.
char sync_points[2];
int turn;

void finish() {
  arrived = 0;
  turn ^= 1;
  ++statistics.barriers;
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
  char* const point = &sync_points[turn];
  release(point);
  if (arrived == threads_alive()) {
    finish();
  } else {
    wait(State::at_barrier);
  }
  acquire(point);
}

namespace {

// An operation that waits for lanes.
struct Pending {
  WarpKind kind;
  unsigned mask, arrived;
  Site site;
  char* sync_point;
};

struct Warp {
  unsigned alive = 0;
  std::vector<Pending> pending;  // with disjoint masks
  char sync_points[4] = {};      // in turn, since lanes leave one after another
  unsigned turn = 0;
};
std::vector<Warp> warps;

// Bytes that sanitizers must not see: lanes read each other's.
void copy(void* to, const void* from, unsigned bytes) {
  auto* const t = static_cast<volatile unsigned char*>(to);
  auto* const f = static_cast<const volatile unsigned char*>(from);
  for (unsigned i = 0; i < bytes; ++i) t[i] = f[i];
}

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
    copy(&vote, lanes[lane].given, sizeof vote);
    votes |= vote << lane;
  }
  return votes;
}

// Gives all lanes their results and wakes those that wait.
void finish(Warp& warp, std::size_t index) {
  const Pending operation = warp.pending[index];
  warp.pending.erase(warp.pending.begin() + index);
  ++statistics.warp_operations;
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
      copy(thread.taken, lanes[source].given, thread.bytes);
    } else if (thread.taken) {
      copy(thread.taken, &votes, sizeof votes);
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
  warp.pending.push_back({kind, mask, 0, site, &warp.sync_points[warp.turn++ % 4]});
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
  copy(thread.given, given, bytes);
  const std::size_t index = find_or_begin(warp, kind, mask, site);
  Pending& operation = warp.pending[index];
  operation.arrived |= self;
  char* const sync_point = operation.sync_point;
  // Of these only __syncwarp orders memory.
  if (kind == WarpKind::sync) release(sync_point);
  if (operation.arrived == (mask & warp.alive)) {
    finish(warp, index);
  } else {
    wait(State::at_warp_operation);
  }
  if (kind == WarpKind::sync) acquire(sync_point);
}

}  // namespace emulated
