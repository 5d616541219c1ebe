// The part of the CUDA runtime that launching code calls, on two devices that do not exist.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

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
