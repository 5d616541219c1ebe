// Assigns samples to bins by a counting sort: count_kernel, reserve_kernel (sort.cu), fill_kernel.
//
//   count    a lane per sample: find its bin, bins.count[bin] += 1   find_bin
//            it also keeps the softmax of each query-head, and
//            zeroes the gradients of samples without a bin
//   reserve  an exclusive scan of the counts: bins.end[bin]          sort.cu
//   fill     a lane per sample: write its number and record to the   atomicAdd(end + bin)
//            next free slot of its bin; bins.end is then the end
//
// finish.cuh visits query-heads in the same way.
#pragma once

#include "cuda/binned/bins.h"
#include "cuda/lanes/samples.cuh"

namespace stdeform::cuda {

constexpr uint32_t kNoBin = 0xffffffff;

// Eight lanes share a query-head and read its samples alternately.
using BinningLane = SamplingLane<4, 8>;
constexpr int kQueryHeadsOfBlock = kWarps * 4;
constexpr int kBinningBlocks = 4;  // room for 128 registers: without this bound, nvcc spills some

// A query-head of the chunk, [heads, Q], and which one of the problem it is.
struct ChunkQueryHead {
  __device__ __forceinline__ ChunkQueryHead(const KernelParams& params, const Bins& bins,
                                            uint32_t number)
      : number(number), q(number) {
    head = bins.by_Q.divide(q, uint32_t(params.Q));
    m = uint32_t(bins.first_m) + head;
    b = uint32_t(bins.first_b) + bins.by_M.divide(m, uint32_t(params.M));
  }

  // As gradients count query-heads, [B, Q, M].
  __device__ int64_t in_problem(const KernelParams& params) const {
    return (b * int64_t(params.Q) + q) * params.M + m;
  }
  // Sample (l, k), counted in the chunk and, as gradients are, in the problem.
  __device__ int64_t in_chunk(const KernelParams& params, int l, int k) const {
    return int64_t(number) * params.P + params.first_point[l] + k;
  }
  __device__ int64_t in_problem(const KernelParams& params, int l, int k) const {
    return in_problem(params) * params.P + params.first_point[l] + k;
  }

  uint32_t number;
  uint32_t q, head, m, b;
};

// Calls visit(lane, has_query_head, query_head) on all lanes of each warp; lanes without a
// query-head get number 0 and false.
template <class F>
__device__ __forceinline__ void visit_query_head(const KernelParams& params, const Bins& bins,
                                                 F visit) {
  const BinningLane lane(threadIdx.x % kWarpSize);
  const int warp = threadIdx.x / kWarpSize;
  const uint32_t number = blockIdx.x * kQueryHeadsOfBlock + warp * 4 + lane.qh;
  const bool has_query_head = number < uint32_t(bins.heads) * uint32_t(params.Q);
  visit(lane, has_query_head, ChunkQueryHead(params, bins, has_query_head ? number : 0));
}

// The address of the N gradients of a sample's pixel coordinates, until its query-head is finished.
template <class T, int N>
__device__ __forceinline__ Compute<T>* pixel_grads_of(const KernelParams& params, const Bins& bins,
                                                      int64_t in_chunk, int64_t in_problem) {
  return bins.pixel_grads
             ? static_cast<Compute<T>*>(bins.pixel_grads) + in_chunk * N
             : static_cast<Compute<T>*>(params.problem.grad_positions.data) + in_problem * N;
}

// A query-head before its first level, with the softmax that count_kernel has kept.
template <class T, int N>
__device__ __forceinline__ QueryHead<T, N> load_query_head(const KernelParams& params,
                                                           const Bins& bins,
                                                           const ChunkQueryHead& at) {
  QueryHead<T, N> query_head;
  query_head.start(params, at.b, at.q, at.m);
  if (params.from_offsets) {
    const Compute<T>* softmax = static_cast<const Compute<T>*>(bins.softmax) + 2 * at.number;
    query_head.max_logit = softmax[0];
    query_head.softmax_scale = softmax[1];
  }
  return query_head;
}

__device__ __forceinline__ bool needs_pixel_grads(const Problem& p) {
  return p.grad_positions.data || p.grad_reference.data;
}

// Number of the bin along an axis.
template <class Axis>
__device__ __forceinline__ uint32_t bin_along(const Axis& axis) {
  return axis.has_low ? uint32_t(axis.low) + 1 : 0;
}

// The bin in its head of a sample of level l at `pixel`; kNoBin if none of its corners exists.
template <class Real, int N>
__device__ __forceinline__ uint32_t find_bin(const KernelParams& params, const Bins& bins,
                                             const Real (&pixel)[N], int l) {
  uint32_t bin = bins.first[l], stride = 1;
  bool has_corner = true;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int size = params.size[l][n];
    const auto axis = sample_axis(pixel[n], Real(size), IntOf<Real>(size));
    has_corner &= axis.has_any;
    bin += bin_along(axis) * stride;
    stride *= uint32_t(size) + 1;
  }
  return has_corner ? bin : kNoBin;
}

// Calls visit(l, k, pixel, bin) for every kPoints-th sample of a query-head, from `first_point` on.
template <class T, int N, class F>
__device__ __forceinline__ void for_each_bin(const KernelParams& params, const Bins& bins,
                                             QueryHead<T, N>& query_head, int first_point,
                                             F visit) {
  for (int l = 0; l < params.L; ++l) {
    query_head.go_to_level(params, l, l > 0);
    const int points = params.num_points(l);
    for (int k = first_point; k < points; k += BinningLane::kPoints) {
      Compute<T> pixel[N];
      query_head.read_pixels(params, k, pixel);
      visit(l, k, pixel, find_bin<Compute<T>, N>(params, bins, pixel, l));
    }
  }
}

// Counts the samples of each bin. Besides, keeps the softmax of each query-head, and zeroes the
// gradients of samples that read nothing, since no bin holds these.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBinningBlocks)
    count_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  const Problem& p = params.problem;
  visit_query_head(params, bins, [&](const auto& lane, bool has_query_head, const auto& at) {
    QueryHead<T, N> query_head;
    query_head.start(params, at.b, at.q, at.m);
    if (params.from_offsets) find_softmax(params, lane, has_query_head, query_head);
    if (!has_query_head) return;
    if (params.from_offsets && lane.point == 0) {
      Real* softmax = static_cast<Real*>(bins.softmax) + 2 * at.number;
      softmax[0] = query_head.max_logit;
      softmax[1] = query_head.softmax_scale;
    }
    uint32_t* count = bins.count + int64_t(at.head) * bins.per_head;
    for_each_bin(params, bins, query_head, lane.point,
                 [&](int l, int k, const Real(&)[N], uint32_t bin) {
                   if (bin != kNoBin) {
                     atomicAdd(count + bin, 1u);
                     return;
                   }
                   if (p.grad_scores.data) {
                     static_cast<Real*>(p.grad_scores.data)[at.in_problem(params, l, k)] = 0;
                   }
                   if (!needs_pixel_grads(p)) return;
                   Real* grads = pixel_grads_of<T, N>(params, bins, at.in_chunk(params, l, k),
                                                      at.in_problem(params, l, k));
#pragma unroll
                   for (int n = 0; n < N; ++n) grads[n] = 0;
                 });
  });
}

// Writes the number and the record of each sample into its bin, in any order.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBinningBlocks)
    fill_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ Bins bins) {
  wait_for_launch_before();
  using Real = Compute<T>;
  visit_query_head(params, bins, [&](const auto& lane, bool has_query_head, const auto& at) {
    if (!has_query_head) return;
    auto query_head = load_query_head<T, N>(params, bins, at);
    uint32_t* end = bins.end + int64_t(at.head) * bins.per_head;
    for_each_bin(params, bins, query_head, lane.point,
                 [&](int l, int k, const Real(&pixel)[N], uint32_t bin) {
                   if (bin == kNoBin) return;
                   const uint32_t slot = atomicAdd(end + bin, 1u);
                   bins.samples[slot] = uint32_t(at.in_chunk(params, l, k));
                   BinRecord<Real> record = {};
#pragma unroll
                   for (int n = 0; n < N; ++n) record.pixel[n] = pixel[n];
                   record.attention = query_head.attention(params, k);
                   static_cast<BinRecord<Real>*>(bins.records)[slot] = record;
                 });
  });
}

}  // namespace stdeform::cuda
