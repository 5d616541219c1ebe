// Where threads wait for each other.
// __syncthreads: all threads of the block that have not ended meet, at one line of the source.
// Operations of a warp (shuffles, votes, reductions, __syncwarp): a lane waits until every lane of
// its mask that has not ended has called the same operation with the same mask on the same line.
#pragma once

#include <type_traits>

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

namespace emulated {

enum class WarpKind {
  sync,
  shuffle_index,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
};

// `given` and `taken` hold `bytes` bytes, at most 16; `argument` is a shuffle's lane, distance or
// mask, and 1 in a reduction of signed numbers.
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

template <class T>
T reduce(WarpKind kind, unsigned mask, T value, Site site) {
  T result = value;
  warp_operation(kind, mask, &value, &result, sizeof(T), std::is_signed<T>::value, kWarp, site);
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
  return emulated::reduce<unsigned>(emulated::WarpKind::ballot, mask, predicate != 0, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, EMULATED_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATED_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}

#define EMULATED_REDUCE(NAME, KIND, T)                                            \
  inline T NAME(unsigned mask, T value, EMULATED_SITE) {                          \
    return emulated::reduce(emulated::WarpKind::KIND, mask, value, {file, line}); \
  }
EMULATED_REDUCE(__reduce_add_sync, reduce_add, unsigned)
EMULATED_REDUCE(__reduce_add_sync, reduce_add, int)
EMULATED_REDUCE(__reduce_min_sync, reduce_min, unsigned)
EMULATED_REDUCE(__reduce_min_sync, reduce_min, int)
EMULATED_REDUCE(__reduce_max_sync, reduce_max, unsigned)
EMULATED_REDUCE(__reduce_max_sync, reduce_max, int)
EMULATED_REDUCE(__reduce_and_sync, reduce_and, unsigned)
EMULATED_REDUCE(__reduce_or_sync, reduce_or, unsigned)
EMULATED_REDUCE(__reduce_xor_sync, reduce_xor, unsigned)
#undef EMULATED_REDUCE

// Which lanes run together is the hardware's affair. Only the caller is the least that it may say,
// so code that trusts it for more fails.
inline unsigned __activemask() { return 1u << emulated::current->lane(); }
