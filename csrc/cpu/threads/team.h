// The threads that work on a call: those of PyTorch's OpenMP runtime, so that only one pool
// competes for the processors; where PyTorch has none, threads of the standard library.
#pragma once

namespace stdeform {

// Calls work(context) on the threads of a team, and returns when all have returned. There may be
// fewer than are asked for: one, inside another team's work. No exception may leave `work`: the
// others would go on with what is destroyed.
//
// OpenMP's team has `pool_size` threads, as PyTorch's have: with fewer, the runtime would end the
// threads that are left out. Without OpenMP `num_useful` threads are made, for this call alone.
void run_team(int num_useful, int pool_size, void (*work)(void*), void* context);

// In a team's work: the number of this thread, from 0, and of all.
int this_thread();
int team_size();

int num_processors();  // that this thread may run on

// How long a thread must work for its part in a team to pay off, in microseconds.
double worthwhile_us();

}  // namespace stdeform
