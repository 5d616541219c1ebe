// What a GPU's caches and memory give to kernels that do nothing but read rows at random, or add to
// them: the way csrc/cuda/ does it, 16 bytes a lane and load. Compiled and called by
// gpu_roofline.py.
#include "cuda/lanes/rows.cuh"

namespace {

using namespace stdeform::cuda;

constexpr int kBlock = 512;  // threads; two such blocks fill a multiprocessor of 64 Ki registers
constexpr int kInFlight = 8;
constexpr int kLaneBytes = 16;
constexpr int kAddedRow = 32;  // numbers of a row that is added to

// Row numbers below `rows`, the same for all lanes of a row; gpu_roofline.py knows them too.
class RandomRows {
 public:
  __device__ RandomRows(uint32_t seed, uint32_t rows) : state_(seed * 2654435761u), rows_(rows) {}

  __device__ __forceinline__ uint32_t next() {
    state_ = state_ * 1664525u + 1013904223u;
    return uint32_t(product(state_, rows_) >> 32);
  }

 private:
  uint32_t state_, rows_;
};

__device__ __forceinline__ uint32_t sum(uint4 vec) { return vec.x + vec.y + vec.z + vec.w; }

// Rows of `lanes` * `vecs` * 16 bytes. out: [threads], the sum of the words that a lane has read.
template <int lanes, int vecs>
__global__ void __launch_bounds__(kBlock, 2)
    gather_kernel(const uint4* table, uint32_t rows, int steps, uint32_t* out) {
  const int thread = blockIdx.x * kBlock + threadIdx.x;
  const int lane = threadIdx.x % kWarpSize;
  const int in_warp = lane / lanes;  // which of the warp's rows the lane reads
  uint32_t total = 0;
  if (in_warp < kWarpSize / lanes) {
    RandomRows random(thread / kWarpSize * kWarpSize + in_warp, rows);
    for (int step = 0; step < steps; step += kInFlight) {
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const uint4* row = table + product(random.next(), uint32_t(lanes * vecs)) + lane % lanes;
#pragma unroll
        for (int v = 0; v < vecs; ++v) total += sum(__ldg(row + v * lanes));
      }
    }
  }
  out[thread] = total;
}

// Adds 1 to every number of rows of kAddedRow, `numbers` per lane and instruction.
template <int numbers>
__global__ void __launch_bounds__(kBlock, 2) add_kernel(float* table, uint32_t rows, int steps) {
  constexpr int kLanes = kAddedRow / numbers;
  const int thread = blockIdx.x * kBlock + threadIdx.x;
  float ones[numbers];
#pragma unroll
  for (float& one : ones) one = 1;
  RandomRows random(thread / kLanes, rows);
  float* mine = table + thread % kLanes * numbers;
  for (int step = 0; step < steps; ++step) {
    add_vec(ones, mine + product(random.next(), uint32_t(kAddedRow)));
  }
}

template <int lanes, int vecs>
void launch_gather(const void* table, uint32_t rows, int steps, uint32_t* out, int blocks,
                   cudaStream_t stream) {
  STDEFORM_LAUNCH((gather_kernel<lanes, vecs>), dim3(blocks), dim3(kBlock), 0, stream,
                  static_cast<const uint4*>(table), rows, steps, out);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int threads_of_block() { return kBlock; }

// Every row slot of every warp reads `steps` rows, a multiple of 8. Rows of 64 and 96 bytes are
// read by 4 and 6 lanes, those of 128 and 192 by as many, twice each, as csrc/cuda/lanes/layout.cuh
// has it. Returns CUDA's error, or -1 for rows of another size.
EXPORT int gather_rows(const void* table, uint32_t rows, int row_bytes, int steps, uint32_t* out,
                       int blocks, cudaStream_t stream) {
  switch (row_bytes / kLaneBytes) {
    case 4: launch_gather<4, 1>(table, rows, steps, out, blocks, stream); break;
    case 6: launch_gather<6, 1>(table, rows, steps, out, blocks, stream); break;
    case 8: launch_gather<4, 2>(table, rows, steps, out, blocks, stream); break;
    case 12: launch_gather<6, 2>(table, rows, steps, out, blocks, stream); break;
    default: return -1;
  }
  return int(cudaGetLastError());
}

// Every row slot adds to `steps` rows of 32 numbers, 1 or 4 numbers per lane. Returns CUDA's error,
// or -1 for another count.
EXPORT int add_to_rows(float* table, uint32_t rows, int numbers, int steps, int blocks,
                       cudaStream_t stream) {
  switch (numbers) {
    case 1:
      STDEFORM_LAUNCH(add_kernel<1>, dim3(blocks), dim3(kBlock), 0, stream, table, rows, steps);
      break;
    case 4:
      STDEFORM_LAUNCH(add_kernel<4>, dim3(blocks), dim3(kBlock), 0, stream, table, rows, steps);
      break;
    default: return -1;
  }
  return int(cudaGetLastError());
}
