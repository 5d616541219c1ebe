// Kernels with a planted fault each, and the same kernels without it: the emulator must distinguish
// the two. Two blocks of 64 threads work on 128 numbers.
#include <climits>
#include <cstring>

#include "cuda/compat.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kThreads = 64, kBlocks = 2;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ int element() { return blockIdx.x * kThreads + threadIdx.x; }

// -- races -------------------------------------------------------------------------------------

template <bool planted>
__global__ void missing_barrier(float* data) {
  STDEFORM_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = data[element()];
  if (!planted) __syncthreads();
  data[element()] = row[kThreads - 1 - threadIdx.x];
}

template <bool planted>
__global__ void missing_syncwarp(float* data) {
  STDEFORM_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = data[element()];
  if (!planted) __syncwarp();
  data[element()] = row[threadIdx.x ^ 1];
}

// A shuffle brings lanes together but does not order their memory.
template <bool planted>
__global__ void shuffle_as_barrier(float* data) {
  STDEFORM_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = data[element()];
  __shfl_sync(kAllLanes, 0, 0);
  if (!planted) __syncwarp();
  data[element()] = row[threadIdx.x ^ 1];
}

template <bool planted>
__global__ void plain_add(float* data) {
  if (planted) {
    data[0] += 1;
  } else {
    atomicAdd(data, 1.0f);
  }
}

// Within a block in order, but not between blocks.
template <bool planted>
__global__ void plain_add_of_blocks(float* data) {
  if (threadIdx.x == 0) {
    if (planted) {
      data[0] += 1;
    } else {
      atomicAdd(data, 1.0f);
    }
  }
}

template <bool planted>
__global__ void read_among_atomics(float* data) {
  STDEFORM_SHARED(float, sum, 1);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  atomicAdd(sum, 1.0f);
  if (!planted) __syncthreads();
  data[element()] = sum[0];
}

// -- memory ------------------------------------------------------------------------------------

template <bool planted>
__global__ void read_past_end(float* data) {
  const int last = kBlocks * kThreads - 1;
  data[element()] = data[element() + (planted && element() == last)];
}

template <bool planted>
__global__ void write_past_end(float* data) {
  const int last = kBlocks * kThreads - 1;
  data[element() + (planted && element() == last)] = 1;
}

template <bool planted>
__global__ void read_before_start(float* data) {
  data[element()] = data[element() - (planted && element() == 0)];
}

template <bool planted>
__global__ void read_past_shared(float* data) {
  STDEFORM_SHARED(float, row, kThreads);
  row[threadIdx.x] = data[element()];
  const float* const first = row;  // no index past an array, for the compiler
  data[element()] = first[threadIdx.x + (planted && threadIdx.x == kThreads - 1)];
}

template <bool planted>
__global__ void write_past_dynamic_shared(float* data) {
  STDEFORM_DYNAMIC_SHARED(float, row);
  row[threadIdx.x + (planted && threadIdx.x == kThreads - 1)] = data[element()];
}

template <bool planted>
__global__ void unwritten_shared(float* data) {
  STDEFORM_SHARED(float, row, kThreads);
  if (!planted || threadIdx.x != 5) row[threadIdx.x] = data[element()];
  __syncthreads();
  data[element()] = row[threadIdx.x] + 1;
}

template <bool planted>
__global__ void misaligned_load(float* data) {
  if (threadIdx.x == 0) {
    const float4 read = *reinterpret_cast<const float4*>(data + 4 * blockIdx.x + planted);
    data[64 + blockIdx.x] = read.x + read.w;
  }
}

template <bool planted>
__global__ void misaligned_atomic(float* data) {
  atomicAdd(reinterpret_cast<float2*>(data + planted), make_float2(1, 1));
}

template <bool planted>
__global__ void another_threads_local_memory(float* data) {
  STDEFORM_SHARED(float*, address, 1);
  float own[2] = {data[element()], 0};
  if (threadIdx.x == 0) address[0] = own;
  __syncthreads();
  const float* const source = planted ? address[0] : own;
  data[element()] = source[blockIdx.x & 1];
  __syncthreads();
}

__device__ float deep(const float* data, int depth) {
  volatile float local[256];
  for (int i = 0; i < 256; ++i) local[i] = data[0] + i;
  return depth ? deep(data, depth - 1) + local[depth & 255] : local[0];
}
template <bool planted>
__global__ void endless_recursion(float* data) {
  data[element()] = deep(data + element(), planted ? 1 << 20 : 1);
}

template <bool planted>
__global__ void index_past_local_array(float* data) {
  float own[4] = {data[element()], 1, 2, 3};
  data[element()] = own[(threadIdx.x & 3) + planted];
}

// -- arithmetic ----------------------------------------------------------------------------------

template <bool planted>
__global__ void signed_overflow(float* data) {
  data[element()] = float(int(threadIdx.x) + (planted ? INT_MAX - 7 : 7));
}

template <bool planted>
__global__ void shift_too_far(float* data) {
  data[element()] = float(1 << (threadIdx.x & (planted ? 63 : 15)));
}

// -- rules of warps and barriers ---------------------------------------------------------------

template <bool planted>
__global__ void divergent_shuffle(float* data) {
  float x = data[element()];
  if (planted && threadIdx.x % 2) {
    x = __shfl_xor_sync(kAllLanes, x, 1);
  } else {
    x = __shfl_xor_sync(kAllLanes, x, 1);
  }
  data[element()] = x;
}

template <bool planted>
__global__ void source_lane_elsewhere(float* data) {
  if (threadIdx.x % 32 < 16) {
    data[element()] = __shfl_sync(0x0000ffff, data[element()], planted ? 20 : 2);
  }
}

template <bool planted>
__global__ void source_lane_ended(float* data) {
  if (planted && threadIdx.x % 32 == 3) return;
  data[element()] = __shfl_sync(kAllLanes, data[element()], 3);
}

template <bool planted>
__global__ void mask_without_caller(float* data) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffff : 0xffff0000;
  data[element()] = __shfl_xor_sync(planted ? 0x0000ffff : mask, data[element()], 1);
}

template <bool planted>
__global__ void different_masks(float* data) {
  const unsigned mask = planted && threadIdx.x % 32 < 16 ? 0x0000ffff : kAllLanes;
  data[element()] = __shfl_xor_sync(mask, data[element()], 1);
  __syncwarp();
}

template <bool planted>
__global__ void odd_width(float* data) {
  data[element()] = __shfl_xor_sync(kAllLanes, data[element()], 1, planted ? 12 : 16);
}

template <bool planted>
__global__ void divergent_barrier(float* data) {
  if (planted && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[element()] = 1;
}

template <bool planted>
__global__ void barrier_of_some(float* data) {
  if (!planted || threadIdx.x < 40) __syncthreads();
  __syncwarp();
  data[element()] = 1;
}

template <bool planted>
__global__ void too_much_static_shared(float* data) {
  STDEFORM_SHARED(float, large, planted ? 12289 : 12288);
  large[threadIdx.x] = data[element()];
}

struct Fault {
  const char* name;
  void (*with)(float*);
  void (*without)(float*);
};

#define FAULT(kernel) {#kernel, kernel<true>, kernel<false>}
const Fault kFaults[] = {
    FAULT(missing_barrier),
    FAULT(missing_syncwarp),
    FAULT(shuffle_as_barrier),
    FAULT(plain_add),
    FAULT(plain_add_of_blocks),
    FAULT(read_among_atomics),
    FAULT(read_past_end),
    FAULT(write_past_end),
    FAULT(read_before_start),
    FAULT(read_past_shared),
    FAULT(write_past_dynamic_shared),
    FAULT(unwritten_shared),
    FAULT(misaligned_load),
    FAULT(misaligned_atomic),
    FAULT(another_threads_local_memory),
    FAULT(index_past_local_array),
    FAULT(signed_overflow),
    FAULT(shift_too_far),
    FAULT(endless_recursion),
    FAULT(divergent_shuffle),
    FAULT(source_lane_elsewhere),
    FAULT(source_lane_ended),
    FAULT(mask_without_caller),
    FAULT(different_masks),
    FAULT(odd_width),
    FAULT(divergent_barrier),
    FAULT(barrier_of_some),
    FAULT(too_much_static_shared),
};

}  // namespace

// `data` is [128]. Returns the launch's error, -1 for a name that is none, and names by their
// number from fault_name.
EXPORT int run_fault(const char* name, bool planted, float* data) {
  for (const Fault& fault : kFaults) {
    if (std::strcmp(fault.name, name)) continue;
    const auto kernel = planted ? fault.with : fault.without;
    STDEFORM_LAUNCH(kernel, kBlocks, kThreads, kThreads * sizeof(float), nullptr, data);
    return cudaGetLastError();
  }
  return -1;
}

EXPORT const char* fault_name(unsigned number) {
  return number < sizeof kFaults / sizeof kFaults[0] ? kFaults[number].name : nullptr;
}
