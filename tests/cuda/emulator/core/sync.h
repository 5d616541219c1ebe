// Where threads wait for each other.
// __syncthreads: all threads of the block that have not ended meet, at one line of the source.
// Operations of a warp (shuffles, ballots, __syncwarp): a lane waits until every lane of
// its mask that has not ended has called the same operation with the same mask on the same line.
#pragma once

#include <type_traits>

#include "thread.h"

namespace emulated {

void barrier(Site site);

void reset_barrier();
void barrier_thread_ended();  // those that wait may have waited for it

}  // namespace emulated

inline void __syncthreads(EMULATED_SITE) { emulated::barrier({file, line}); }

namespace emulated {

enum class WarpKind {
  sync,
  shuffle_index,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
};

// `given` and `taken` hold `bytes` bytes, at most 16; `argument` is a shuffle's lane, distance or
// mask.
void warp_operation(WarpKind kind, unsigned mask, const void* given, void* taken, unsigned bytes,
                    std::int64_t argument, int width, Site site);

void reset_warps(int threads);
void warp_thread_ended(const Thread& thread);

template <class T>
T shuffle(WarpKind kind, unsigned mask, T value, std::int64_t argument, int width, Site site) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable<T>::value, "at most 16 plain bytes");
  T result = value;
  warp_operation(kind, mask, &value, &result, sizeof(T), argument, width, site);
  return result;
}

}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffff, EMULATED_SITE) {
  emulated::warp_operation(emulated::WarpKind::sync, mask, nullptr, nullptr, 0, 0, emulated::kWarp,
                           {file, line});
}

#define EMULATED_SHUFFLE(NAME, KIND, ARGUMENT)                                                    \
  template <class T>                                                                              \
  T NAME(unsigned mask, T value, ARGUMENT argument, int width = emulated::kWarp, EMULATED_SITE) { \
    return emulated::shuffle(emulated::WarpKind::KIND, mask, value, argument, width,              \
                             {file, line});                                                       \
  }
EMULATED_SHUFFLE(__shfl_sync, shuffle_index, int)
EMULATED_SHUFFLE(__shfl_up_sync, shuffle_up, unsigned)
EMULATED_SHUFFLE(__shfl_down_sync, shuffle_down, unsigned)
EMULATED_SHUFFLE(__shfl_xor_sync, shuffle_xor, int)
#undef EMULATED_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_SITE) {
  const unsigned vote = predicate != 0;
  unsigned votes = 0;
  emulated::warp_operation(emulated::WarpKind::ballot, mask, &vote, &votes, sizeof vote, 0,
                           emulated::kWarp, {file, line});
  return votes;
}
