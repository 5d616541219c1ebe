// How units of work, one per batch row and head, are shared out among threads.
//
// Whole units go to one thread each, as long as every thread gets as many; the rest, fewer units
// than threads, are worked on by all threads together, a part of a unit at a time.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>

#include "core/problem.h"

namespace stdeform {
namespace {

class Team {
 public:
  explicit Team(const Problem& p) : units_(p.B * p.M) {
    // A thread must find about 20 us of work to be worth waking.
    const double work = double(units_) * double(p.Q * p.L * p.K << p.N) * double(p.D);
    const double useful = p.exact_threads ? p.num_threads : 1 + work / 2e5;
    threads_ = kParallel ? int(std::min(double(p.num_threads), useful)) : 1;
    whole_ = units_ - units_ % threads_;
  }

  int threads() const { return threads_; }
  int64_t rest() const { return units_ - whole_; }
  // Slices of scratch that are in use at a time.
  int64_t num_slices() const { return std::min<int64_t>(units_, threads_); }

  // Every thread calls f. A thread alone does so without a parallel region, each of whose barriers
  // would be a system call, unless its caller is in one, whose team must not take part in f.
  template <class F>
  void run(F f) const {
    if (threads_ == 1 && !in_parallel()) return f();
#pragma omp parallel num_threads(threads_)
    f();
  }

  // The following are called by every thread inside `run`, in the same order. Each ends with a
  // barrier.

  // f(unit, slice)
  template <class F>
  void for_each_whole_unit(F f) const {
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < whole_; ++unit) f(unit, this_thread());
  }

  // f(unit, slice, begin, end) over [0, length) of every unit left over, in parts of about
  // length / parts.
  template <class F>
  void for_each_part_of_rest(int64_t length, int64_t parts, F f) const {
    const int64_t step = std::max<int64_t>(1, (length + parts - 1) / parts);
    const int64_t steps = (length + step - 1) / step;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < rest() * steps; ++i) {
      const int64_t begin = i % steps * step;
      f(whole_ + i / steps, i / steps, begin, std::min(begin + step, length));
    }
  }

  // Enough parts per unit left over for every thread to get `each`.
  int64_t parts(int64_t each) const { return rest() ? (each * threads_ + rest() - 1) / rest() : 1; }

 private:
#ifdef _OPENMP
  static constexpr bool kParallel = true;
  static int this_thread() { return omp_get_thread_num(); }
  static bool in_parallel() { return omp_in_parallel(); }
#else
  static constexpr bool kParallel = false;
  static int this_thread() { return 0; }
  static bool in_parallel() { return false; }
#endif

  int64_t units_, whole_;
  int threads_;
};

}  // namespace
}  // namespace stdeform
