// Runs the threads of one block, one at a time, in an order that can be chosen. A thread runs until
// it waits, ends, or is preempted.
#pragma once

#include <cstdint>
#include <vector>

#include "thread.h"

namespace emulated {

enum class Order : int { fifo = 0, lifo = 1, random = 2 };

// How threads and blocks take turns; set by the tests.
struct Schedule {
  Order order = Order::fifo;
  std::uint64_t random_state = 1;
  unsigned preempt_one_in = 0;  // chance of a switch at a point of preemption; 0: never
};
extern Schedule schedule;
std::uint64_t random_number();

using Body = void (*)(void* argument);

// Runs one block to its end or to a failure.
void run_block(uint3 block, dim3 block_size, dim3 grid_size, Body body, void* argument);

// The threads of the running block, by number, and how many of them have not ended.
std::vector<Thread>& threads();
int threads_alive();

// For the running thread: waits in `state` until another thread wakes it.
void wait(State state);
void wake(Thread& thread);
// Lets another thread go first, if chance will have it so.
void maybe_preempt();
// Drops all threads and goes back to the launcher.
[[noreturn]] void abandon_block();

}  // namespace emulated
