// Kernels that do one thing each, so that the emulator can be tested against the definition of
// each.
#include <cstdint>
#include <cstring>

#include "cuda/compat.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

__device__ int thread_number() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ int block_number() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

// -- who am I ----------------------------------------------------------------------------------

template <int kFields, class T>
__global__ void __launch_bounds__(1024) write_indices(T* out) {  // [threads of the grid, 6]
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  T* const row = out + (block_number() * threads + thread_number()) * kFields;
  row[0] = blockIdx.x, row[1] = blockIdx.y, row[2] = blockIdx.z;
  row[3] = threadIdx.x, row[4] = threadIdx.y, row[5] = threadIdx.z;
}

// -- warps -------------------------------------------------------------------------------------

enum class Shuffle { index, up, down, exclusive_or };

template <class T>
__device__ T shuffled(Shuffle kind, T value, int argument, int width) {
  switch (kind) {
    case Shuffle::index: return __shfl_sync(0xffffffff, value, argument, width);
    case Shuffle::up: return __shfl_up_sync(0xffffffff, value, argument, width);
    case Shuffle::down: return __shfl_down_sync(0xffffffff, value, argument, width);
    default: return __shfl_xor_sync(0xffffffff, value, argument, width);
  }
}

template <class T>
__global__ void shuffle_kernel(Shuffle kind, const T* in, const int* argument, int width, T* out) {
  out[threadIdx.x] = shuffled(kind, in[threadIdx.x], argument[threadIdx.x], width);
}

// The lanes of `mask` vote; the others end, or wait for them.
__global__ void vote_kernel(unsigned mask, bool others_end, const int* in, unsigned* out) {
  const int lane = threadIdx.x;
  if (mask >> lane & 1) out[lane] = __ballot_sync(mask, in[lane] > 0);
  if (!others_end) __syncthreads();
}

// -- blocks ------------------------------------------------------------------------------------

template <int kThreads>
__global__ void reverse_twice(const float* in, float* out) {
  STDEFORM_SHARED(float, first, kThreads);
  STDEFORM_DYNAMIC_SHARED(double, second);
  const int i = threadIdx.x;
  first[i] = in[blockIdx.x * kThreads + i];
  __syncthreads();
  second[i] = 2 * first[kThreads - 1 - i];
  __syncthreads();
  out[blockIdx.x * kThreads + i] = float(second[kThreads - 1 - i]);
}

// Shared memory as a block finds it.
__global__ void read_unwritten(float* out) {
  STDEFORM_SHARED(float, fresh, 32);
  out[blockIdx.x * 32 + threadIdx.x] = fresh[threadIdx.x];
  fresh[threadIdx.x] = 1;
}

__global__ void sum_in_warps(const float* in, float* out) {
  STDEFORM_SHARED(float, partial, 32);
  float sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += partial[i];
    out[blockIdx.x] = total;
  }
}

// -- atomics -----------------------------------------------------------------------------------

template <class T>
__global__ void add_all(const T* in, T* sum) {
  atomicAdd(sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
}

template <class T>
void launch_shuffle(Shuffle kind, const void* in, const int* argument, int width, void* out) {
  STDEFORM_LAUNCH(shuffle_kernel<T>, 1, 32, 0, nullptr, kind, static_cast<const T*>(in), argument,
                  width, static_cast<T*>(out));
}

template <class T>
void launch_add(const void* in, void* sum, int blocks, int threads) {
  STDEFORM_LAUNCH(add_all<T>, blocks, threads, 0, nullptr, static_cast<const T*>(in),
                  static_cast<T*>(sum));
}

}  // namespace

EXPORT void indices(int* out, const int* grid, const int* block) {
  STDEFORM_LAUNCH((write_indices<6, int>), dim3(grid[0], grid[1], grid[2]),
                  dim3(block[0], block[1], block[2]), 0, nullptr, out);
}

EXPORT void shuffle(const char* type, int kind, const void* in, const int* argument, int width,
                    void* out) {
  if (!std::strcmp(type, "u2"))
    launch_shuffle<std::uint16_t>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "i4")) launch_shuffle<int>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "f8")) launch_shuffle<double>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "f4x4")) launch_shuffle<float4>(Shuffle(kind), in, argument, width, out);
}

EXPORT void votes(unsigned mask, bool others_end, int threads, const int* in, unsigned* out) {
  STDEFORM_LAUNCH(vote_kernel, 1, threads, 0, nullptr, mask, others_end, in, out);
}

EXPORT void reverse(int blocks, const float* in, float* out) {
  STDEFORM_LAUNCH(reverse_twice<96>, blocks, 96, 96 * sizeof(double), cudaStream_t(8), in, out);
}

EXPORT void unwritten(int blocks, float* out) {
  STDEFORM_LAUNCH(read_unwritten, blocks, 32, 0, nullptr, out);
}

EXPORT void warp_sums(int blocks, int threads, const float* in, float* out) {
  STDEFORM_LAUNCH(sum_in_warps, blocks, threads, 0, nullptr, in, out);
}

EXPORT void add(const char* type, const void* in, void* sum, int blocks, int threads) {
  const auto is = [type](const char* name) { return !std::strcmp(type, name); };
  if (is("int32")) launch_add<int>(in, sum, blocks, threads);
  if (is("uint32")) launch_add<unsigned>(in, sum, blocks, threads);
  if (is("uint64")) launch_add<unsigned long long>(in, sum, blocks, threads);
  if (is("float32")) launch_add<float>(in, sum, blocks, threads);
  if (is("float64")) launch_add<double>(in, sum, blocks, threads);
  if (is("float32x2")) launch_add<float2>(in, sum, blocks, threads);
  if (is("float32x4")) launch_add<float4>(in, sum, blocks, threads);
}

// The runtime's answers: {device count, device after setting 1 and setting 5, errors of the two,
// multiprocessors, last error}.
EXPORT void runtime(int* out) {
  cudaGetDeviceCount(out);
  out[3] = cudaSetDevice(1) == cudaSuccess;
  out[4] = cudaSetDevice(5) == cudaErrorInvalidDevice;
  cudaGetDevice(out + 1);
  out[2] = cudaSetDevice(0) == cudaSuccess;
  cudaDeviceGetAttribute(out + 5, cudaDevAttrMultiProcessorCount, 0);
  out[6] = cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess;
}

// Dynamic shared memory beyond 48 KiB, allowed before or not; returns the launch's error.
EXPORT int large_shared(int bytes, bool allow) {
  const auto kernel = reverse_twice<1>;
  if (allow) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return cudaGetLastError();
  }
  float in = 1, out = 0;
  STDEFORM_LAUNCH(kernel, 1, 1, bytes, nullptr, &in, &out);
  return cudaGetLastError();
}

EXPORT int impossible_launch(int blocks, int threads) {
  STDEFORM_LAUNCH(read_unwritten, blocks, threads, 0, nullptr, static_cast<float*>(nullptr));
  return cudaGetLastError();
}
