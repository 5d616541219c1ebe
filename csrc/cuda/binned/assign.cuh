// Finds the bin of every sample and writes down the samples of each bin: a counting sort.
#pragma once

#include "cuda/binned/bins.h"
#include "cuda/lanes/samples.cuh"

namespace stdeform::cuda {

constexpr uint32_t kNoBin = 0xffffffff;

// Eight lanes share a row and read its samples in turn.
using RowLane = SamplingLane<4, 8>;
constexpr int kRowsOfBlock = kWarps * 4;
constexpr int kRowBlocks = 4;  // room for 128 registers: left to itself, nvcc spills some

// A row of the chunk, [heads, Q], and which row of the problem it is.
struct ChunkRow {
  __device__ __forceinline__ ChunkRow(const KernelParams& params, const Bins& bins, uint32_t row)
      : row(row), q(row) {
    head = bins.by_Q.divide(q, uint32_t(params.Q));
    m = uint32_t(bins.first_m) + head;
    b = uint32_t(bins.first_b) + bins.by_M.divide(m, uint32_t(params.M));
  }

  // The row as gradients count it, [B, Q, M].
  __device__ int64_t in_problem(const KernelParams& params) const {
    return (b * int64_t(params.Q) + q) * params.M + m;
  }
  // Sample (l, k), counted in the chunk and, as gradients are, in the problem.
  __device__ int64_t in_chunk(const KernelParams& params, int l, int k) const {
    return (int64_t(row) * params.L + l) * params.K + k;
  }
  __device__ int64_t in_problem(const KernelParams& params, int l, int k) const {
    return (in_problem(params) * params.L + l) * params.K + k;
  }

  uint32_t row;
  uint32_t q, head, m, b;
};

// Calls visit(lane, present, row) on all lanes of each warp; lanes without a row get row 0 and
// present = false.
template <class F>
__device__ __forceinline__ void visit_chunk_row(const KernelParams& params, const Bins& bins,
                                                F visit) {
  const RowLane lane(threadIdx.x % kWarpSize);
  const int warp = threadIdx.x / kWarpSize;
  const uint32_t row = blockIdx.x * kRowsOfBlock + warp * 4 + lane.row;
  const bool present = row < uint32_t(bins.heads) * uint32_t(params.Q);
  visit(lane, present, ChunkRow(params, bins, present ? row : 0));
}

// Where the gradients of a sample's pixel coordinates are kept until its row is finished.
template <class T, int N>
__device__ __forceinline__ Compute<T>* pixel_grads_of(const KernelParams& params, const Bins& bins,
                                                      int64_t in_chunk, int64_t in_problem) {
  return bins.pixel_grads
             ? static_cast<Compute<T>*>(bins.pixel_grads) + in_chunk * N
             : static_cast<Compute<T>*>(params.problem.grad_positions.data) + in_problem * N;
}

// A row of which the softmax is known; started.
template <class T, int N>
__device__ __forceinline__ SampledRow<T, N> sampled_row(const KernelParams& params,
                                                        const Bins& bins, const ChunkRow& at) {
  SampledRow<T, N> row;
  row.start(params, at.b, at.q, at.m);
  if (params.from_offsets) {
    const Compute<T>* kept = static_cast<const Compute<T>*>(bins.softmax) + 2 * at.row;
    row.largest = kept[0];
    row.softmax_scale = kept[1];
  }
  return row;
}

__device__ __forceinline__ bool wants_pixel_grads(const Problem& p) {
  return p.grad_positions.data || p.grad_reference.data;
}

// Number of the bin along an axis.
template <class Axis>
__device__ __forceinline__ uint32_t bin_along(const Axis& axis) {
  return axis.has_low ? uint32_t(axis.low) + 1 : 0;
}

// The bin in its head of a sample of level l at `pixel`; kNoBin if it reads nothing.
template <class Real, int N>
__device__ __forceinline__ uint32_t find_bin(const KernelParams& params, const Bins& bins,
                                             const Real (&pixel)[N], int l) {
  uint32_t bin = bins.first[l], stride = 1;
  bool reads = true;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int size = params.size[l][n];
    const auto axis = sample_axis(pixel[n], Real(size), IntOf<Real>(size));
    reads &= axis.has_any;
    bin += bin_along(axis) * stride;
    stride *= uint32_t(size) + 1;
  }
  return reads ? bin : kNoBin;
}

// Calls visit(l, k, pixel, bin) for the samples of a row that has started, from `first_point` on.
template <class T, int N, class F>
__device__ __forceinline__ void for_each_bin_of_row(const KernelParams& params, const Bins& bins,
                                                    SampledRow<T, N>& row, int first_point,
                                                    F visit) {
  for (int l = 0; l < params.L; ++l) {
    row.go_to_level(params, l, l > 0);
    for (int k = first_point; k < params.K; k += RowLane::kPoints) {
      Compute<T> pixel[N];
      row.read_pixels(params, k, pixel);
      visit(l, k, pixel, find_bin<Compute<T>, N>(params, bins, pixel, l));
    }
  }
}

// Counts the samples of each bin. Besides, keeps the softmax of each row, and zeroes the gradients
// of samples that read nothing, which no bin holds.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    count_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  const Problem& p = params.problem;
  visit_chunk_row(params, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    SampledRow<T, N> row;
    row.start(params, at.b, at.q, at.m);
    if (params.from_offsets) find_softmax(params, lane, present, row);
    if (!present) return;
    if (params.from_offsets && lane.point == 0) {
      Real* kept = static_cast<Real*>(bins.softmax) + 2 * at.row;
      kept[0] = row.largest;
      kept[1] = row.softmax_scale;
    }
    uint32_t* count = bins.count + int64_t(at.head) * bins.per_head;
    for_each_bin_of_row(params, bins, row, lane.point,
                        [&](int l, int k, const Real(&)[N], uint32_t bin) {
                          if (bin != kNoBin) {
                            atomicAdd(count + bin, 1u);
                            return;
                          }
                          if (p.grad_scores.data) {
                            static_cast<Real*>(p.grad_scores.data)[at.in_problem(params, l, k)] = 0;
                          }
                          if (!wants_pixel_grads(p)) return;
                          Real* grads = pixel_grads_of<T, N>(
                              params, bins, at.in_chunk(params, l, k), at.in_problem(params, l, k));
#pragma unroll
                          for (int n = 0; n < N; ++n) grads[n] = 0;
                        });
  });
}

// Writes the number and the record of each sample into its bin, in any order.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    fill_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  visit_chunk_row(params, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    if (!present) return;
    auto row = sampled_row<T, N>(params, bins, at);
    uint32_t* end = bins.end + int64_t(at.head) * bins.per_head;
    for_each_bin_of_row(params, bins, row, lane.point,
                        [&](int l, int k, const Real(&pixel)[N], uint32_t bin) {
                          if (bin == kNoBin) return;
                          const uint32_t slot = atomicAdd(end + bin, 1u);
                          bins.samples[slot] = uint32_t(at.in_chunk(params, l, k));
                          BinRecord<Real> record = {};
#pragma unroll
                          for (int n = 0; n < N; ++n) record.pixel[n] = pixel[n];
                          record.attention = row.attention(params, k);
                          static_cast<BinRecord<Real>*>(bins.records)[slot] = record;
                        });
  });
}

}  // namespace stdeform::cuda
