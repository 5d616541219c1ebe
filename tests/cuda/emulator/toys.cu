// Kernels that do one thing each, so that the emulator can be held against the thing's definition.
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

__device__ void vote(unsigned mask, int x, unsigned* row) {
  row[0] = __ballot_sync(mask, x > 0);
  row[1] = __any_sync(mask, x > 0);
  row[2] = __all_sync(mask, x > 0);
  row[3] = __reduce_add_sync(mask, x);
  row[4] = __reduce_min_sync(mask, x);
  row[5] = __reduce_max_sync(mask, x);
  row[6] = __reduce_add_sync(mask, unsigned(x));
  row[7] = __reduce_min_sync(mask, unsigned(x));
  row[8] = __reduce_max_sync(mask, unsigned(x));
  row[9] = __reduce_and_sync(mask, unsigned(x));
  row[10] = __reduce_or_sync(mask, unsigned(x));
  row[11] = __reduce_xor_sync(mask, unsigned(x));
}

// The lanes of `mask` vote; the others end, or wait for them.
__global__ void vote_kernel(unsigned mask, bool others_end, const int* in, unsigned* out) {
  const int lane = threadIdx.x;
  if (mask >> lane & 1) vote(mask, in[lane], out + lane * 12);
  if (!others_end) __syncthreads();
}

// -- blocks ------------------------------------------------------------------------------------

__global__ void predicates(const int* in, int* out) {
  const int x = in[threadIdx.x];
  int* const row = out + threadIdx.x * 3;
  row[0] = __syncthreads_count(x);
  row[1] = __syncthreads_and(x);
  row[2] = __syncthreads_or(x);
}

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

__global__ void add_in_shared(const int* in, unsigned* out) {
  STDEFORM_SHARED(unsigned, bins, 4);
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[in[threadIdx.x] & 3], 1u);
  __syncthreads();
  if (threadIdx.x < 4) out[threadIdx.x] = bins[threadIdx.x];
}

__global__ void other_atomics(const int* in, int* out) {
  const int x = in[threadIdx.x];
  atomicSub(out + 0, x);
  atomicMin(out + 1, x);
  atomicMax(out + 2, x);
  atomicAnd(out + 3, x);
  atomicOr(out + 4, x);
  atomicXor(out + 5, x);
  atomicExch(out + 6, x);
  atomicCAS(out + 7, 7, x);
  atomicInc(reinterpret_cast<unsigned*>(out + 8), 9u);
}

// -- arithmetic --------------------------------------------------------------------------------

__global__ void real_functions(const float* in, float* out) {
  const float x = in[threadIdx.x];
  float* const row = out + threadIdx.x * 8;
  row[0] = __expf(x);
  row[1] = exp2f(x);
  row[2] = __logf(fabsf(x));
  row[3] = __fdividef(1.0f, x);
  row[4] = rsqrtf(fabsf(x));
  row[5] = __saturatef(x);
  row[6] = __fmaf_rn(x, x, 1.0f);
  row[7] = __ldg(in + threadIdx.x) + max(x, 0.5f) + min(x, 0.5f);
}

__global__ void to_integers(const float* in, int* out) {
  const float x = in[threadIdx.x];
  int* const row = out + threadIdx.x * 5;
  row[0] = __float2int_rn(x);
  row[1] = __float2int_rz(x);
  row[2] = __float2int_rd(x);
  row[3] = __float2int_ru(x);
  row[4] = __float_as_int(x);
}

template <class T, class ToReal, class FromReal>
__device__ void narrow_arithmetic(const T* in, T* out, ToReal to_real, FromReal from_real) {
  const T a = in[threadIdx.x * 3], b = in[threadIdx.x * 3 + 1], c = in[threadIdx.x * 3 + 2];
  out[threadIdx.x * 3] = __hadd(a, b);
  out[threadIdx.x * 3 + 1] = __hfma(a, b, c);
  out[threadIdx.x * 3 + 2] = from_real(to_real(a) * to_real(b));
}

__global__ void half_arithmetic(const __half* in, __half* out) {
  narrow_arithmetic(
      in, out, [](__half x) { return __half2float(x); }, [](float x) { return __float2half(x); });
}
__global__ void bfloat16_arithmetic(const __nv_bfloat16* in, __nv_bfloat16* out) {
  narrow_arithmetic(
      in, out, [](__nv_bfloat16 x) { return __bfloat162float(x); },
      [](float x) { return __float2bfloat16(x); });
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
  if (!std::strcmp(type, "f2")) launch_shuffle<__half>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "i4")) launch_shuffle<int>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "f8")) launch_shuffle<double>(Shuffle(kind), in, argument, width, out);
  if (!std::strcmp(type, "f4x4")) launch_shuffle<float4>(Shuffle(kind), in, argument, width, out);
}

EXPORT void votes(unsigned mask, bool others_end, int threads, const int* in, unsigned* out) {
  STDEFORM_LAUNCH(vote_kernel, 1, threads, 0, nullptr, mask, others_end, in, out);
}

EXPORT void block_predicates(int threads, const int* in, int* out) {
  STDEFORM_LAUNCH(predicates, 1, threads, 0, nullptr, in, out);
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
  if (is("float16")) launch_add<__half>(in, sum, blocks, threads);
  if (is("float16x2")) launch_add<__half2>(in, sum, blocks, threads);
  if (is("float32x2")) launch_add<float2>(in, sum, blocks, threads);
  if (is("float32x4")) launch_add<float4>(in, sum, blocks, threads);
}

EXPORT void shared_bins(int threads, const int* in, unsigned* out) {
  STDEFORM_LAUNCH(add_in_shared, 1, threads, 0, nullptr, in, out);
}

EXPORT void atomics(int threads, const int* in, int* out) {
  STDEFORM_LAUNCH(other_atomics, 1, threads, 0, nullptr, in, out);
}

EXPORT void reals(int threads, const float* in, float* out) {
  STDEFORM_LAUNCH(real_functions, 1, threads, 0, nullptr, in, out);
}

EXPORT void integers(int threads, const float* in, int* out) {
  STDEFORM_LAUNCH(to_integers, 1, threads, 0, nullptr, in, out);
}

EXPORT void halves(int threads, const __half* in, __half* out) {
  STDEFORM_LAUNCH(half_arithmetic, 1, threads, 0, nullptr, in, out);
}

EXPORT void bfloat16s(int threads, const __nv_bfloat16* in, __nv_bfloat16* out) {
  STDEFORM_LAUNCH(bfloat16_arithmetic, 1, threads, 0, nullptr, in, out);
}

// The runtime's answers: {device count, device after setting 1 and setting 5, errors of the two,
// multiprocessors, blocks per multiprocessor for 256 threads and 100 KiB, last error, last error}.
EXPORT void runtime(int* out) {
  cudaGetDeviceCount(out);
  out[3] = cudaSetDevice(1) == cudaSuccess;
  out[4] = cudaSetDevice(5) == cudaErrorInvalidDevice;
  cudaGetDevice(out + 1);
  out[2] = cudaSetDevice(0) == cudaSuccess;
  cudaDeviceGetAttribute(out + 5, cudaDevAttrMultiProcessorCount, 0);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(out + 6, read_unwritten, 256, 100 << 10);
  out[7] = cudaPeekAtLastError() == cudaErrorInvalidDevice;
  out[8] = cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess;
  cudaMemsetAsync(out + 9, 0, sizeof(int), nullptr);
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
