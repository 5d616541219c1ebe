#include "scheduler.h"

#include <cstdlib>
#include <string>

#include "failure.h"
#include "sync.h"

namespace emulated {

Thread* current = nullptr;
Schedule schedule;

namespace {

// The running block.
std::vector<Thread> block_threads;
int alive = 0;
Body kernel_body = nullptr;
void* kernel_argument = nullptr;

std::vector<int> free_slots;  // stacks
Fiber launcher;

// Threads that can run, as a ring; each is in it at most once.
class Ready {
 public:
  void reset(std::size_t threads) {
    std::size_t room = 1;
    while (room < threads) room *= 2;
    ring_.resize(room);
    first_ = end_ = 0;
  }
  bool empty() const { return first_ == end_; }
  void push(int number) { at(end_++) = number; }
  int pop() {
    if (schedule.order == Order::lifo) return at(--end_);
    if (schedule.order == Order::random) {
      std::swap(at(first_), at(first_ + random_number() % (end_ - first_)));
    }
    return at(first_++);
  }

 private:
  int& at(std::size_t i) { return ring_[i & (ring_.size() - 1)]; }
  std::vector<int> ring_;
  std::size_t first_ = 0, end_ = 0;
};
Ready ready;

[[noreturn]] void run_threads();

// Leaves `from`, which is null if it has ended, for a thread or, if `to` is null, the launcher.
void go_to(Fiber* from, Thread* to) {
  if (to && to->slot < 0) {
    to->slot = free_slots.back();
    free_slots.pop_back();
    start_fiber(to->fiber, to->slot, run_threads);
  }
  current = to;
  switch_fiber(from, to ? to->fiber : launcher);
}

void note_deadlock() {
  std::string waiting;
  int count = 0;
  for (const Thread& thread : block_threads) {
    if (thread.state == State::done || ++count > 4) continue;
    waiting += " thread (" + std::to_string(thread.index.x) + ", " +
               std::to_string(thread.index.y) + ", " + std::to_string(thread.index.z) +
               ") waits in " +
               (thread.state == State::at_barrier ? "__syncthreads" : "a warp operation") + " at " +
               thread.site.file + ":" + std::to_string(thread.site.line) + ";";
  }
  note_failure("deadlock:%s %d of %d threads wait", waiting.c_str(), count,
               static_cast<int>(block_threads.size()));
}

// Who goes on; null is the launcher.
Thread* take_next() {
  if (!ready.empty()) return &block_threads[ready.pop()];
  if (alive > 0) note_deadlock();
  return nullptr;
}

void end_thread(Thread& thread) {
  thread.state = State::done;
  --alive;
  warp_thread_ended(thread);
  barrier_thread_ended();
}

// A fiber's life: it runs its thread, and then threads that have not started yet, on its own stack.
void run_threads() {
  for (;;) {
    kernel_body(kernel_argument);
    Thread& ended = *current;
    end_thread(ended);
    Thread* const next = take_next();
    if (next && next->slot < 0) {
      next->slot = ended.slot;
      next->fiber = ended.fiber;
      current = next;
      continue;
    }
    free_slots.push_back(ended.slot);
    go_to(nullptr, next);
  }
}

}  // namespace

std::uint64_t random_number() {  // xorshift64*
  std::uint64_t& x = schedule.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return (x * 2685821657736338717u) >> 11;
}

std::vector<Thread>& threads() { return block_threads; }
int threads_alive() { return alive; }

void run_block(uint3 block, dim3 block_size, dim3 grid_size, Body body, void* argument) {
  const int count = static_cast<int>(block_size.x * block_size.y * block_size.z);
  kernel_body = body;
  kernel_argument = argument;
  free_slots.clear();
  for (int slot = count; slot-- > 0;) free_slots.push_back(slot);
  block_threads.assign(count, Thread());
  ready.reset(count);
  alive = count;
  reset_barrier();
  reset_warps(count);
  for (int i = 0; i < count; ++i) {
    Thread& thread = block_threads[i];
    thread.number = i;
    thread.index = {i % block_size.x, i / block_size.x % block_size.y,
                    i / block_size.x / block_size.y};
    thread.block = block;
    thread.block_size = block_size;
    thread.grid_size = grid_size;
    ready.push(i);
  }
  go_to(&launcher, take_next());
}

void wait(State state) {
  Thread& thread = *current;
  thread.state = state;
  go_to(&thread.fiber, take_next());
}

void wake(Thread& thread) {
  thread.state = State::ready;
  ready.push(thread.number);
}

void maybe_preempt() {
  if (!current || !schedule.preempt_one_in) return;
  if (random_number() % schedule.preempt_one_in) return;
  Thread& thread = *current;
  ready.push(thread.number);
  Thread* const next = take_next();
  if (next != &thread) go_to(&thread.fiber, next);
}

void abandon_block() {
  go_to(nullptr, nullptr);
  std::abort();  // never reached
}

}  // namespace emulated
