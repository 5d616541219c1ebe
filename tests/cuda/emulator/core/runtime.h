// The part of the CUDA runtime that launching code calls, on two devices that do not exist; and
// launches: all blocks of the grid, one after another, in the order of the schedule.
#pragma once

#include <cuda_runtime.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <tuple>
#include <utility>
#include <vector>

#include "scheduler.h"

namespace emulated {

// Of each device; few unless a test says otherwise, so that small problems fill them.
extern int multiprocessors;

void set_last_error(cudaError_t error);
int current_device();

// Dynamic shared memory that a kernel may be launched with: 48 KiB, or what cudaFuncSetAttribute
// has allowed.
std::size_t allowed_dynamic_shared(const void* kernel);

}  // namespace emulated

// What nvcc's own header declares for kernels; C++ converts no function to const void*.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace emulated {

struct Launch {
  const char* kernel;    // as written at the launch
  const char* launcher;  // the function that launches, with its template arguments
  const void* function;  // the kernel's address
  dim3 grid, block;
  std::size_t dynamic_bytes;
  cudaStream_t stream;
  int device = 0;
};

// Checks the limits of a device, then runs the grid. An error is also what cudaGetLastError
// returns.
void launch(Launch what, Body body, void* argument);

// The launches since the tests last read them, oldest first.
std::vector<Launch>& launches();

// Arguments are converted to the kernel's parameters once, and every thread is given copies.
template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), Launch what, Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  auto call = [&] { std::apply(kernel, values); };
  what.function = reinterpret_cast<const void*>(kernel);
  launch(what, [](void* argument) { (*static_cast<decltype(call)*>(argument))(); }, &call);
}

}  // namespace emulated

#define EMULATED_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                      \
  ::emulated::launch_kernel(kernel,                                                          \
                            {#kernel, __PRETTY_FUNCTION__, nullptr, dim3(grid), dim3(block), \
                             std::size_t(shared_bytes), stream},                             \
                            __VA_ARGS__)
