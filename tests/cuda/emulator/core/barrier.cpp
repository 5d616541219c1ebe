#include "barrier.h"

#include "failure.h"
#include "races.h"
#include "scheduler.h"

namespace emulated {
namespace {

int arrived, predicates, result;
BarrierKind kind_here;
Site site_here;
// Two in turn: a thread may arrive at the next barrier before another has left this one.
char sync_points[2];
int turn;

void finish() {
  switch (kind_here) {
    case BarrierKind::plain: result = 0; break;
    case BarrierKind::count: result = predicates; break;
    case BarrierKind::all: result = predicates == arrived; break;
    case BarrierKind::any: result = predicates > 0; break;
  }
  arrived = predicates = 0;
  turn ^= 1;
  ++statistics.barriers;
  block_met();
  for (Thread& thread : threads()) {
    if (thread.state == State::at_barrier) wake(thread);
  }
}

}  // namespace

void reset_barrier() { arrived = predicates = 0; }

void barrier_thread_ended() {
  if (arrived && arrived == threads_alive()) finish();
}

int barrier(BarrierKind kind, bool predicate, Site site) {
  current->site = site;
  if (!arrived) {
    kind_here = kind;
    site_here = site;
  } else if (site_here.line != site.line || kind_here != kind) {
    fail("divergent __syncthreads: here %s:%d, other threads of the block wait at %s:%d", site.file,
         site.line, site_here.file, site_here.line);
  }
  ++arrived;
  predicates += predicate;
  char* const point = &sync_points[turn];
  release(point);
  if (arrived == threads_alive()) {
    finish();
  } else {
    wait(State::at_barrier);
  }
  acquire(point);
  return result;
}

}  // namespace emulated
