// Which accesses of a launch are ordered, in CUDA's terms: those of one thread; all before a
// __syncthreads and all after it; the same within the lanes of a __syncwarp. Nothing else is, above
// all not blocks among themselves, nor the lanes of a shuffle.
#pragma once

#include <cstddef>

namespace emulated {

enum class Access : unsigned char { read, write, atomic };

void races_begin_launch();
void races_begin_block(int threads);
void block_met();                         // at a __syncthreads
void lanes_met(int warp, unsigned mask);  // at a __syncwarp

// Fails the launch if the running thread's access conflicts with an earlier one that it is not
// ordered with, runs out of its array, or reads shared memory that the block has not written.
// `code` is the address of the instruction. Called in the checked build, see access.cpp.
void check_access(const void* address, std::size_t bytes, Access kind, const void* code);

}  // namespace emulated
