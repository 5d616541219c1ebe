// Which thread works on which head.
//
// Here and in the kernels, a head is one head of one batch element, numbered b * M + m. Whole heads
// belong to one thread each; their number is a multiple of the number of threads. The remaining
// heads, fewer than threads, are shared: all threads work on each, on one range of it at a time.
// Without packed copies, ranges of queries or of heads are distributed instead.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>

#include "core/problem.h"

namespace stdeform {
namespace {

class ThreadPartition {
 public:
  explicit ThreadPartition(const Problem& p) : num_heads_(p.B * p.M) {
    // Waking a thread pays off from about 20 us of work for it.
    const double work = double(num_heads_) * double(p.Q * p.P << p.N) * double(p.D);
    const double useful_threads = p.use_all_threads ? p.num_threads : 1 + work / 2e5;
    num_threads_ = kHasOpenMP ? int(std::min(double(p.num_threads), useful_threads)) : 1;
    num_whole_ = num_heads_ - num_heads_ % num_threads_;
  }

  int num_threads() const { return num_threads_; }

  // Packed copies of heads that are in use at the same time.
  int64_t num_copies() const { return std::min<int64_t>(num_heads_, num_threads_); }

  // Calls f on every thread. A single thread needs no parallel region, in which each barrier would
  // be a system call. It opens one only if the caller is inside another region, so that the loops
  // in f are not distributed over the threads of that region.
  template <class F>
  void run(F f) const {
    if (num_threads_ == 1 && !in_parallel()) return f();
#pragma omp parallel num_threads(num_threads_)
    f();
  }

  // Inside `run`, every thread must call the following in the same order. Each that has work ends
  // with a barrier.

  // f(head, copy): `copy` is the packed copy that the thread may use for this head.
  template <class F>
  void for_each_whole_head(F f) const {
#pragma omp for schedule(dynamic, 1)
    for (int64_t head = 0; head < num_whole_; ++head) f(head, this_thread());
  }

  // f(begin, end): splits [0, length) into about `ranges_per_thread` ranges for each thread.
  template <class F>
  void for_each_range(int64_t length, int64_t ranges_per_thread, F f) const {
    const int64_t num_ranges = ranges_per_thread * num_threads_;
    const int64_t step = std::max<int64_t>(1, (length + num_ranges - 1) / num_ranges);
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < length; begin += step) f(begin, std::min(begin + step, length));
  }

  // f(head, copy, begin, end): splits [0, length), cells or queries, of every shared head into
  // ranges, about `ranges_per_thread` for each thread.
  template <class F>
  void for_each_shared_range(int64_t length, int64_t ranges_per_thread, F f) const {
    if (!num_shared()) return;
    const int64_t num_ranges = (ranges_per_thread * num_threads_ + num_shared() - 1) / num_shared();
    const int64_t step = std::max<int64_t>(1, (length + num_ranges - 1) / num_ranges);
    const int64_t steps = (length + step - 1) / step;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_shared() * steps; ++i) {
      const int64_t begin = i % steps * step;
      f(num_whole_ + i / steps, i / steps, begin, std::min(begin + step, length));
    }
  }

 private:
  int64_t num_shared() const { return num_heads_ - num_whole_; }

#ifdef _OPENMP
  static constexpr bool kHasOpenMP = true;
  static int this_thread() { return omp_get_thread_num(); }
  static bool in_parallel() { return omp_in_parallel(); }
#else
  static constexpr bool kHasOpenMP = false;
  static int this_thread() { return 0; }
  static bool in_parallel() { return false; }
#endif

  int64_t num_heads_, num_whole_;
  int num_threads_;
};

}  // namespace
}  // namespace stdeform
