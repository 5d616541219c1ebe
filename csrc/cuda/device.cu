#include "cuda/device.h"

#include <cuda_runtime.h>

namespace stdeform::cuda {
namespace {

constexpr int kArchs[] = {__CUDA_ARCH_LIST__};  // of this build, ascending: 750, 800, ...

// 13000 -> "13.0", as CUDA encodes its versions.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// CUDA's message for this error names an old driver even if there is no driver at all.
std::string driver_problem() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "no usable CUDA driver was found";
  }
  return "the CUDA driver is too old: it supports CUDA " + version_text(driver) +
         ", and this build was made with CUDA " + version_text(CUDART_VERSION);
}

std::string describe(cudaError_t error) {
  if (error == cudaErrorInsufficientDriver) return driver_problem();
  return cudaGetErrorString(error);
}

// Machine code runs on its own major version from its minor version up; the newest architecture is
// also there as PTX, which the driver compiles for anything newer.
bool has_kernels_for(int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const int arch = 100 * major + 10 * minor;
  int newest = 0;
  for (const int built : kArchs) {
    if (built / 100 == major && built <= arch) return true;
    if (built > newest) newest = built;
  }
  return arch >= newest;
}

}  // namespace

Devices find_devices() {
  int visible = 0;
  const cudaError_t error = cudaGetDeviceCount(&visible);
  if (error != cudaSuccess) {
    cudaGetLastError();  // forget it, so that no later check finds it
    return {0, describe(error)};
  }
  int usable = 0;
  for (int device = 0; device < visible; ++device) usable += has_kernels_for(device);
  if (usable) return {usable, ""};
  return {0, "no visible CUDA device has an architecture that this build has kernels for"};
}

}  // namespace stdeform::cuda
