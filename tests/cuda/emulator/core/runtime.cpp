#include "runtime.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "failure.h"
#include "memory.h"
#include "races.h"

namespace emulated {
namespace {

constexpr int kDevices = 2;  // so that there is a device other than the current one
cudaError_t last_error = cudaSuccess;
int device_now = 0;

std::map<const void*, std::size_t>& allowed() {
  static std::map<const void*, std::size_t> bytes;
  return bytes;
}

// As the runtime does, remembers an error for cudaGetLastError too.
cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

int multiprocessors = 4;

void set_last_error(cudaError_t error) { last_error = error; }
int current_device() { return device_now; }

std::size_t allowed_dynamic_shared(const void* kernel) {
  const auto found = allowed().find(kernel);
  return found == allowed().end() ? 48 << 10 : found->second;
}

}  // namespace emulated

using namespace emulated;

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorLaunchFailure:
    case cudaErrorInvalidConfiguration: return failure_message();
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "invalid argument";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "an emulated error";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = device_now;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return returned(cudaErrorInvalidDevice);
  device_now = device;
  return cudaSuccess;
}

// Those of an H200, except the number of multiprocessors.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDevices) return returned(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: return returned(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // a hint
  if (value < 0 || value > int(kBlockSharedLimit)) return returned(cudaErrorInvalidValue);
  allowed()[kernel] = value;
  return cudaSuccess;
}

}  // extern "C"

namespace emulated {
namespace {

// The limits that every architecture since 7.0 shares.
bool is_possible(const Launch& what) {
  const auto [gx, gy, gz] = what.grid;
  const auto [bx, by, bz] = what.block;
  const std::uint64_t threads = std::uint64_t{bx} * by * bz;
  return gx && gy && gz && gx < 1u << 31 && gy < 1u << 16 && gz < 1u << 16 && threads &&
         threads <= kMaxFibers && bx <= 1024 && by <= 1024 && bz <= 64 &&
         what.dynamic_bytes <= allowed_dynamic_shared(what.function);
}

std::vector<std::uint64_t> block_order(std::uint64_t count) {
  std::vector<std::uint64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (schedule.order == Order::lifo) return {order.rbegin(), order.rend()};
  if (schedule.order == Order::random) {
    for (std::uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  }
  return order;
}

}  // namespace

std::vector<Launch>& launches() {
  static std::vector<Launch> all;
  return all;
}

void launch(Launch what, Body body, void* argument) {
  if (failed()) {
    set_last_error(cudaErrorLaunchFailure);
    return;
  }
  begin_launch(what.kernel, what.launcher);
  if (!is_possible(what)) {
    note_failure(
        "impossible launch: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of dynamic "
        "shared memory, of which %zu are allowed",
        what.grid.x, what.grid.y, what.grid.z, what.block.x, what.block.y, what.block.z,
        what.dynamic_bytes, allowed_dynamic_shared(what.function));
    set_last_error(cudaErrorInvalidConfiguration);
    return;
  }
  what.device = current_device();
  launches().push_back(what);
  races_begin_launch();
  const dim3 grid = what.grid, block = what.block;
  {
    const FaultHandler handler;
    for (const std::uint64_t i : block_order(std::uint64_t{grid.x} * grid.y * grid.z)) {
      if (failed()) break;
      const uint3 index = {static_cast<unsigned>(i % grid.x),
                           static_cast<unsigned>(i / grid.x % grid.y),
                           static_cast<unsigned>(i / grid.x / grid.y)};
      reset_shared(what.dynamic_bytes);
      races_begin_block(static_cast<int>(block.x * block.y * block.z));
      run_block(index, block, grid, body, argument);
    }
  }
  release_shared();
  if (failed()) set_last_error(cudaErrorLaunchFailure);
}

}  // namespace emulated
