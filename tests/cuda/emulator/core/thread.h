// One CUDA thread of the running block, and how the emulator's device functions are declared.
#pragma once

#include <cstdint>

#include "device_types.h"
#include "fiber.h"
#include "vector_types.h"

// Part of the kernel that calls it, so that messages name the kernel's line.
#define EMULATED_DEVICE __attribute__((always_inline)) inline

// Last parameters: the source location of the call.
#define EMULATED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulated {

constexpr int kWarp = 32;

// A place in the kernels' source.
struct Site {
  const char* file = nullptr;
  int line = 0;
};

enum class State : std::uint8_t { ready, at_barrier, at_warp_operation, done };

struct Thread {
  // What kernels read as threadIdx, blockIdx, blockDim and gridDim.
  uint3 index, block;
  dim3 block_size, grid_size;

  State state = State::ready;
  int number = 0;  // in the block, x running fastest
  int slot = -1;   // of its stack; -1: not started
  Fiber fiber;

  int warp() const { return number / kWarp; }
  int lane() const { return number % kWarp; }

  // What it waits with in a barrier or a warp operation.
  Site site;
  alignas(16) unsigned char given[16];
  void* taken = nullptr;
  unsigned bytes = 0;
  std::int64_t argument = 0;
  int width = kWarp;
};

// The thread that runs; null outside kernels.
extern Thread* current;

}  // namespace emulated
