// Which thread works on which head.
//
// Here and in the kernels, a head is one head of one batch element, numbered b * M + m. Whole heads
// belong to one thread each; their number is a multiple of the number of threads. The remaining
// heads, fewer than threads, are shared: all threads work on each, on one range of it at a time.
// Without packed copies, ranges of queries or of heads are distributed instead.
//
// Work is distributed and waited for without OpenMP, whose barriers spin for milliseconds. If
// another process runs on a processor of ours, that takes the time of the thread waited for.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "core/problem.h"
#include "cpu/threads/meeting.h"
#include "cpu/threads/team.h"

namespace stdeform {
namespace {

class ThreadPartition {
 public:
  explicit ThreadPartition(const Problem& p) : num_heads_(p.B * p.M), pool_size_(p.num_threads) {
    // A parallel region pays off from 2 us for each thread of the pool, as it wakes them all.
    const double work_us = double(num_heads_) * double(p.Q * p.P << p.N) * double(p.D) / kWorkPerUs;
    const double useful = p.use_all_threads ? pool_size_ : 1 + work_us / worthwhile_us();
    num_threads_ = 1;
    if (useful >= std::max(2.0, 1 + pool_size_ / 10.0)) {
      num_threads_ = int(std::min(double(pool_size_), useful));
      // More threads than processors would take the caches from one another.
      if (!p.use_all_threads) num_threads_ = std::min(num_threads_, num_processors());
    }
    num_whole_ = num_heads_ - num_heads_ % num_threads_;
    if (num_threads_ > 1) is_in_loop_.reset(new bool[num_threads_]());
  }

  int num_threads() const { return num_threads_; }

  // Packed copies of heads that are in use at the same time.
  int64_t num_copies() const { return std::min<int64_t>(num_heads_, num_threads_); }

  // Calls f on every thread. A single one needs no team.
  template <class F>
  void run(F f) const {
    if (num_threads_ == 1) return f();
    auto work = [this, &f]() noexcept {
      if (thread() < num_working()) f();
      // Only the first thread waits, so that it need not spin in the barrier of the team.
      end_.reach(team_size(), thread() == 0, [] {});
    };
    // noexcept: the others would go on with what an exception destroys, or wait for ever.
    const auto call = [](void* of) noexcept { (*static_cast<decltype(work)*>(of))(); };
    run_team(num_threads_, pool_size_, call, &work);
  }

  // Inside `run`, every thread must call the following in the same order. Each begins when the one
  // before it is done.

  // f(head, copy): `copy` is the packed copy that the thread may use for this head.
  template <class F>
  void for_each_whole_head(F f) const {
    for_each_index(num_whole_, [&](int64_t head) { f(head, thread()); });
  }

  // f(begin, end): splits [0, length) into about `ranges_per_thread` ranges for each thread.
  template <class F>
  void for_each_range(int64_t length, int64_t ranges_per_thread, F f) const {
    const int64_t num_ranges = ranges_per_thread * num_threads_;
    const int64_t step = std::max<int64_t>(1, (length + num_ranges - 1) / num_ranges);
    for_each_index((length + step - 1) / step,
                   [&](int64_t i) { f(i * step, std::min((i + 1) * step, length)); });
  }

  // f(head, copy, begin, end): splits [0, length), cells or queries, of every shared head into
  // ranges, about `ranges_per_thread` for each thread.
  template <class F>
  void for_each_shared_range(int64_t length, int64_t ranges_per_thread, F f) const {
    if (!num_shared()) return;
    const int64_t num_ranges = (ranges_per_thread * num_threads_ + num_shared() - 1) / num_shared();
    const int64_t step = std::max<int64_t>(1, (length + num_ranges - 1) / num_ranges);
    const int64_t steps = (length + step - 1) / step;
    for_each_index(num_shared() * steps, [&](int64_t i) {
      const int64_t begin = i % steps * step;
      f(num_whole_ + i / steps, i / steps, begin, std::min(begin + step, length));
    });
  }

 private:
  int64_t num_shared() const { return num_heads_ - num_whole_; }

  // f(i) for i in [0, count), each on the next thread that is free.
  template <class F>
  void for_each_index(int64_t count, F f) const {
    if (num_threads_ == 1) {
      for (int64_t i = 0; i < count; ++i) f(i);
      return;
    }
    bool& is_in_loop = is_in_loop_[thread()];
    if (is_in_loop) between_loops_.reach(num_working(), true, [this] { next_ = 0; });
    is_in_loop = true;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
  }

  static constexpr double kWorkPerUs = 1e4;

  // A team may have fewer threads than it was asked for.
  int num_working() const { return std::min(num_threads_, team_size()); }
  int thread() const { return num_threads_ == 1 ? 0 : this_thread(); }

  int64_t num_heads_, num_whole_;
  int pool_size_, num_threads_;
  mutable std::atomic<int64_t> next_{0};  // index of the loop
  mutable Meeting between_loops_, end_;
  std::unique_ptr<bool[]> is_in_loop_;  // by thread: whether it has begun one
};

}  // namespace
}  // namespace stdeform
