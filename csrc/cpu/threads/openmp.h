// The OpenMP runtime that PyTorch has loaded: found when the process runs, and never linked. With a
// second runtime in a process two pools compete for the processors, and those of Intel and LLVM end
// the process; and PyTorch's copy has another name in most of its builds.
#pragma once

#include <string>

namespace stdeform::openmp {

// Looks for the runtime among the libraries that PyTorch needs; `torch` is PyTorch's folder. To be
// called once, before the functions below.
void find(const std::string& torch);

// Its file; empty if there is none.
const std::string& file();

// The rest needs a runtime.

// Calls work(context) on a team of threads: fewer than `num_threads` if there are no more, one
// inside another team. Returns when all have returned.
void run(int num_threads, void (*work)(void*), void* context);

// In such a call: the number of this thread, from 0, and of all.
int this_thread();
int team_size();

int num_processors();  // that this thread may run on

}  // namespace stdeform::openmp
