// A point that several threads reach, at which some wait for all.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace stdeform {
namespace {

// It can be used again once all have reached it.
//
// Flattened: the standard library's functions would otherwise be compiled for this instruction set
// under names that the linker merges with those for others.
class Meeting {
  // Longer than being woken takes, much shorter than what the system lets other processes run for.
  static constexpr auto kSpin = std::chrono::microseconds(200);

 public:
  // The last of `count` threads calls f before the others go on. Threads with `waits` return after
  // that, others at once.
  template <class F>
  __attribute__((flatten)) void reach(int count, bool waits, F f) {
    const int round = round_.load(std::memory_order_relaxed);
    if (reached_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      f();
      reached_.store(0, std::memory_order_relaxed);
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        round_.store(round + 1, std::memory_order_release);
      }
      all_reached_.notify_all();
    } else if (waits) {
      wait(round);
    }
  }

 private:
  __attribute__((flatten)) void wait(int round) {
    const auto is_over = [&] { return round_.load(std::memory_order_acquire) != round; };
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (!is_over()) {
      if (std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      all_reached_.wait(lock, is_over);
    }
  }

  std::atomic<int> reached_{0}, round_{0};
  std::mutex mutex_;
  std::condition_variable all_reached_;
};

}  // namespace
}  // namespace stdeform
