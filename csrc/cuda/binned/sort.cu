#include "cuda/binned/sort.h"

#include "cuda/compat.cuh"
#include "cuda/lanes/layout.cuh"

namespace stdeform::cuda {
namespace {

constexpr int kBinsOfThread = 4;
constexpr int kBinsOfBlock = kThreads * kBinsOfThread;

int64_t number_of(const Bins& bins) { return int64_t(bins.heads) * bins.per_head; }

// Each block reserves room for its bins at once, by one addition to the total.
__global__ void __launch_bounds__(kThreads) reserve_kernel(const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  STDEFORM_SHARED(uint32_t, of_warp, kWarps);
  STDEFORM_SHARED(uint32_t, of_block, 1);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t number = int64_t(bins.heads) * bins.per_head;
  const int64_t first = int64_t(blockIdx.x) * kBinsOfBlock + threadIdx.x * kBinsOfThread;
  uint32_t counts[kBinsOfThread];
  uint32_t sum = 0;  // of this thread and, after the scan, of the threads before it in the warp
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    counts[i] = first + i < number ? bins.count[first + i] : 0;
    sum += counts[i];
  }
  const uint32_t of_thread = sum;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const uint32_t before = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == kWarpSize - 1) of_warp[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t all = 0;
    for (int i = 0; i < kWarps; ++i) all += of_warp[i];
    of_block[0] = atomicAdd(bins.total, all);
  }
  __syncthreads();
  uint32_t begin = of_block[0] + sum - of_thread;
  for (int i = 0; i < warp; ++i) begin += of_warp[i];
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    if (first + i < number) bins.end[first + i] = begin;
    begin += counts[i];
  }
}

// The samples of a bin: their numbers, and with each its record, of `size` times 16 bytes.
struct BinOfSamples {
  uint32_t* numbers;
  uint4* records;
  int size;

  __device__ void exchange(uint32_t a, uint32_t b) const {
    const uint32_t number = numbers[a];
    numbers[a] = numbers[b];
    numbers[b] = number;
    for (int i = 0; i < size; ++i) {
      const uint4 record = records[a * size + i];
      records[a * size + i] = records[b * size + i];
      records[b * size + i] = record;
    }
  }
};

// Sorts n <= 32 samples: the slot of each is the number of samples with smaller numbers.
__device__ void sort_few(const BinOfSamples& samples, int n, int lane) {
  const uint32_t number = lane < n ? samples.numbers[lane] : 0xffffffff;
  int slot = 0;
  for (int i = 0; i < n; ++i) slot += __shfl_sync(~0u, number, i) < number;
  __syncwarp();
  if (lane < n) samples.numbers[slot] = number;
  for (int i = 0; i < samples.size; ++i) {
    const uint4 record = samples.records[min(lane, n - 1) * samples.size + i];
    __syncwarp();
    if (lane < n) samples.records[slot * samples.size + i] = record;
  }
}

// A bitonic network in which every comparison puts the smaller number first, so that comparisons
// with what is past the end can be left out.
__device__ void sort_many(const BinOfSamples& samples, uint32_t n, int lane) {
  const auto compare = [&](uint32_t a, uint32_t b) {
    if (b < n && samples.numbers[b] < samples.numbers[a]) samples.exchange(a, b);
  };
  for (uint32_t half = 1; half < n; half *= 2) {
    for (uint32_t i = lane; i < n; i += kWarpSize) {
      const uint32_t at = i / half * 2 * half, within = i % half;
      compare(at + within, at + 2 * half - 1 - within);
    }
    __syncwarp();
    for (uint32_t step = half / 2; step > 0; step /= 2) {
      for (uint32_t i = lane; i < n; i += kWarpSize) {
        const uint32_t at = i / step * 2 * step + i % step;
        compare(at, at + step);
      }
      __syncwarp();
    }
  }
}

__global__ void __launch_bounds__(kThreads) sort_kernel(const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  const int lane = threadIdx.x % kWarpSize;
  const int64_t bin = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (bin >= int64_t(bins.heads) * bins.per_head) return;
  const uint32_t n = bins.count[bin];
  if (n < 2) return;
  const uint32_t first = bins.end[bin] - n;
  const BinOfSamples samples = {
      bins.samples + first,
      static_cast<uint4*>(bins.records) + int64_t(first) * bins.record_size,
      bins.record_size,
  };
  n <= kWarpSize ? sort_few(samples, int(n), lane) : sort_many(samples, n, lane);
}

}  // namespace

void reserve_bins(const Bins& bins, cudaStream_t stream) {
  const dim3 grid(1 + (number_of(bins) - 1) / kBinsOfBlock);
  STDEFORM_LAUNCH(reserve_kernel, grid, dim3(kThreads), 0, stream, bins);
}

void sort_bins(const Bins& bins, cudaStream_t stream) {
  const dim3 grid(1 + (number_of(bins) - 1) / kWarps);
  STDEFORM_LAUNCH(sort_kernel, grid, dim3(kThreads), 0, stream, bins);
}

}  // namespace stdeform::cuda
