// __syncthreads: all threads of the block that have not ended meet, at one line of the source.
#pragma once

#include "device.h"
#include "thread.h"

namespace emulated {

enum class BarrierKind { plain, count, all, any };

// Returns what the kind promises: how many predicates hold, or whether all or any do.
int barrier(BarrierKind kind, bool predicate, Site site);

void reset_barrier();
void barrier_thread_ended();  // those that wait may have waited for it

}  // namespace emulated

inline void __syncthreads(EMULATED_SITE) {
  emulated::barrier(emulated::BarrierKind::plain, false, {file, line});
}
inline int __syncthreads_count(int predicate, EMULATED_SITE) {
  return emulated::barrier(emulated::BarrierKind::count, predicate != 0, {file, line});
}
inline int __syncthreads_and(int predicate, EMULATED_SITE) {
  return emulated::barrier(emulated::BarrierKind::all, predicate != 0, {file, line});
}
inline int __syncthreads_or(int predicate, EMULATED_SITE) {
  return emulated::barrier(emulated::BarrierKind::any, predicate != 0, {file, line});
}
