// Finds the bin of every sample and writes down the samples of each bin: a counting sort.
#pragma once

#include "bins.h"
#include "samples.cuh"

namespace stdeform::cuda {

constexpr uint32_t kNoBin = 0xffffffff;

// Eight lanes share a row and read its samples in turn.
using RowLane = SamplingLane<4, 8>;
constexpr int kRowsOfBlock = kWarps * 4;
constexpr int kRowBlocks = 4;  // room for 128 registers: left to itself, nvcc spills some

// A row of the chunk, [heads, Q], and which row of the problem it is.
struct ChunkRow {
  __device__ ChunkRow(const Call& call, const Bins& bins, uint32_t row) : row(row) {
    head = row / uint32_t(call.Q);
    q = row % uint32_t(call.Q);
    const uint32_t from_first_m = uint32_t(bins.first_m) + head;
    b = bins.first_b + from_first_m / uint32_t(call.M);
    m = from_first_m % uint32_t(call.M);
  }

  // Sample (l, k), counted in the chunk and, as gradients are, in the problem.
  __device__ int64_t in_chunk(const Call& call, int l, int k) const {
    return (int64_t(row) * call.L + l) * call.K + k;
  }
  __device__ int64_t in_problem(const Call& call, int l, int k) const {
    return (((b * int64_t(call.Q) + q) * call.M + m) * call.L + l) * call.K + k;
  }

  uint32_t row;
  int head, q, b, m;
};

// Calls visit(lane, present, row) on all lanes of each warp; lanes without a row get row 0 and
// present = false.
template <class F>
__device__ __forceinline__ void visit_chunk_row(const Call& call, const Bins& bins, F visit) {
  const RowLane lane(threadIdx.x % kWarpSize);
  const int warp = threadIdx.x / kWarpSize;
  const uint32_t row = blockIdx.x * kRowsOfBlock + warp * 4 + lane.row;
  const bool present = row < uint32_t(bins.heads) * uint32_t(call.Q);
  visit(lane, present, ChunkRow(call, bins, present ? row : 0));
}

// Where the gradients of a sample's pixel coordinates are kept until its row is finished.
template <class T, int N>
__device__ __forceinline__ Compute<T>* pixel_grads_of(const Call& call, const Bins& bins,
                                                      const ChunkRow& row, int l, int k) {
  if (bins.pixel_grads) {
    return static_cast<Compute<T>*>(bins.pixel_grads) + row.in_chunk(call, l, k) * N;
  }
  return static_cast<Compute<T>*>(call.problem.grad_positions.data) +
         row.in_problem(call, l, k) * N;
}

__device__ __forceinline__ bool wants_pixel_grads(const Problem& p) {
  return p.grad_positions.data || p.grad_reference.data;
}

// The bin in its head of a sample of level l at `pixel`; kNoBin if it reads nothing.
template <class Real, int N>
__device__ __forceinline__ uint32_t find_bin(const Call& call, const Bins& bins,
                                             const Real (&pixel)[N], int l) {
  uint32_t bin = bins.first[l], stride = 1;
  bool reads = true;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int size = call.size[l][n];
    const auto axis = sample_axis(pixel[n], Real(size), IntOf<Real>(size));
    reads &= axis.has_low || axis.has_high;
    bin += (axis.has_low ? uint32_t(axis.low) + 1 : 0) * stride;
    stride *= uint32_t(size) + 1;
  }
  return reads ? bin : kNoBin;
}

template <class T, int N, class F>
__device__ __forceinline__ void for_each_bin_of_row(const Call& call, const Bins& bins,
                                                    const SampledRow<T>& row, int first_point,
                                                    F visit) {
  for (int l = 0; l < call.L; ++l) {
    for (int k = first_point; k < call.K; k += RowLane::kPoints) {
      Compute<T> pixel[N];
      read_pixels<T, N>(call, row, l, k, pixel);
      visit(l, k, find_bin<Compute<T>, N>(call, bins, pixel, l));
    }
  }
}

// Counts the samples of each bin. Besides, keeps the softmax of each row, and zeroes the gradients
// of samples that read nothing, which no bin holds.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    count_kernel(const __grid_constant__ Call call, const __grid_constant__ Bins bins) {
  using Real = Compute<T>;
  const Problem& p = call.problem;
  visit_chunk_row(call, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    SampledRow<T> row(p, at.b, at.q, at.m);
    if (p.reference.data) find_softmax<T>(call, lane, present, row);
    if (!present) return;
    if (p.reference.data && lane.point == 0) {
      Real* kept = static_cast<Real*>(bins.softmax) + 2 * at.row;
      kept[0] = row.largest;
      kept[1] = row.scale;
    }
    uint32_t* count = bins.count + int64_t(at.head) * bins.per_head;
    for_each_bin_of_row<T, N>(call, bins, row, lane.point, [&](int l, int k, uint32_t bin) {
      if (bin != kNoBin) {
        atomicAdd(count + bin, 1u);
        return;
      }
      if (p.grad_scores.data) {
        static_cast<Real*>(p.grad_scores.data)[at.in_problem(call, l, k)] = 0;
      }
      if (!wants_pixel_grads(p)) return;
      Real* grads = pixel_grads_of<T, N>(call, bins, at, l, k);
#pragma unroll
      for (int n = 0; n < N; ++n) grads[n] = 0;
    });
  });
}

// Writes the number of each sample into its bin, in any order.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    place_kernel(const __grid_constant__ Call call, const __grid_constant__ Bins bins) {
  visit_chunk_row(call, bins, [&](const RowLane& lane, bool present, const ChunkRow& at) {
    if (!present) return;
    const SampledRow<T> row(call.problem, at.b, at.q, at.m);
    uint32_t* end = bins.end + int64_t(at.head) * bins.per_head;
    for_each_bin_of_row<T, N>(call, bins, row, lane.point, [&](int l, int k, uint32_t bin) {
      if (bin == kNoBin) return;
      bins.samples[atomicAdd(end + bin, 1u)] = uint32_t(at.in_chunk(call, l, k));
    });
  });
}

}  // namespace stdeform::cuda
