// What the lanes of a warp hold of a bin, and what they exchange in shared memory.
#pragma once

#include "cuda/binned/bins.h"
#include "cuda/lanes/rows.cuh"

namespace stdeform::cuda {

// Blocks that a multiprocessor of 64 Ki registers has room for.
template <class Real>
constexpr int kBinBlocks = sizeof(Real) == 8 ? 2 : 4;

// Samples that a warp describes at a time: as many as leave a block less than 48 KiB.
template <class Real>
constexpr int kBinBatch = sizeof(Real) == 8 ? 16 : 32;

// Corners of a lane. With two, half as many lanes load the same vector of a row of grad_out, and
// widen it, but the products take twice the shared memory, of which older devices have room for one
// block.
template <int N>
constexpr int kBinCorners = 1;

// The lanes of a warp hold the rows of all corners; the layout divides the channels of a row.
template <int N, int channels>
struct BinLayoutOf {
  static constexpr int kLanes = kWarpSize * kBinCorners<N> >> N;
  static constexpr int kPerLane = channels / kLanes;
  static constexpr int kVecSize = kPerLane % 4 == 0 ? 4 : 2;
  static_assert(kPerLane % kVecSize == 0, "all channels have a lane");
  using type = RowLayout<kLanes, kPerLane / kVecSize, kVecSize, true>;
};
template <int N, int channels>
using BinLayout = typename BinLayoutOf<N, channels>::type;
template <int N>
using AnyBinLayout = RowLayout<(kWarpSize * kBinCorners<N> >> N), 8 / kBinCorners<N>, 1, false>;

// A number for each corner of a lane.
template <class Real, int N>
struct alignas(sizeof(Real) * kBinCorners<N>) PerCorner {
  Real of[kBinCorners<N>];
};

// A sample as all lanes of the warp see it.
template <class T, int N>
struct alignas(16) BinSample {
  Compute<T> weight[1 << N];  // interpolation weight times attention, of each corner
  const T* grad_row;          // [D] of grad_out
  const T* value_row;         // [D] of the lowest corner that exists
  Compute<T>* sum_row;        // [D] of grad_value, the same cell
  uint32_t to_next[N];        // rows from the lower to the higher corner along each axis
  uint32_t exists;            // a bit for each corner
};

// Partial dot products of the samples of a warp with their corners:
// [sample][lane of a corner's row][corner]. Samples are an odd number of 16 bytes apart, so that
// lanes that add them up read different banks.
template <class Real, int N>
class BinDots {
 public:
  struct alignas(16) Partial {
    Real of[4];
  };
  static constexpr int kWords = kWarpSize * kBinCorners<N>;  // of a sample
  static constexpr int kPitch = kWords / 4 + 1;
  static constexpr int kSize = kBinBatch<Real> * kPitch;  // of memory

  __device__ explicit BinDots(Partial* memory) : memory_(memory) {}

  // The address of a lane's numbers for sample 0; those of the next samples are kStep apart.
  static constexpr int kStep = 4 * kPitch / kBinCorners<N>;
  __device__ __forceinline__ PerCorner<Real, N>* of_lane(int corner, int lane_of_row) const {
    constexpr int kOfLane = kBinCorners<N>;
    return reinterpret_cast<PerCorner<Real, N>*>(memory_) + (lane_of_row << N) / kOfLane +
           corner / kOfLane;
  }

  __device__ __forceinline__ void add_up(int sample, Real (&dots)[1 << N]) const {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const Partial partial = memory_[sample * kPitch + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) dots[(4 * i + j) % (1 << N)] += partial.of[j];
    }
  }

 private:
  Partial* memory_;
};

// A lane's corners of the current bin.
template <class T, int N, class Layout>
struct BinCorner {
  using Real = Compute<T>;
  static constexpr int kCorners = kBinCorners<N>;

  // Begins the bin of a sample: loads the rows of the lane's corners and sets their sums to zero.
  __device__ __forceinline__ void open(const Problem& p, const BinSample<T, N>& sample,
                                       int first_corner, int channel, int channels_left,
                                       bool needs_values) {
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      const int corner = first_corner + c;
      exists[c] = sample.exists >> corner & 1;
      uint32_t row = 0;
#pragma unroll
      for (int n = 0; n < N; ++n) row += corner >> n & 1 ? sample.to_next[n] : 0;
      sum_row[c] = sample.sum_row + row * uint64_t(p.M * p.D) + channel;
      LoadedRow<T, Layout> loaded = {};
      if (exists[c] && needs_values) {
        loaded.load(sample.value_row + row * uint64_t(p.value.stride[1]) + channel, channels_left);
      }
      loaded.widen_to(values[c]);
#pragma unroll
      for (int i = 0; i < Layout::kVecsPerLane; ++i) {
#pragma unroll
        for (int j = 0; j < Layout::kVecSize; ++j) sums[c][i][j] = 0;
      }
    }
  }

  // Adds the sums to memory; `is_exclusive`: without atomics, since no other warp adds to the rows.
  __device__ __forceinline__ void close(bool is_exclusive, int channels_left) {
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      if (!exists[c]) continue;
      exists[c] = false;
#pragma unroll
      for (int i = 0; i < Layout::kVecsPerLane; ++i) {
        if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
        Real* to = sum_row[c] + i * Layout::kStep;
        if (is_exclusive) {
          Real numbers[Layout::kVecSize];
          const auto* vec = reinterpret_cast<const Vec<Real, Layout::kVecSize>*>(to);
          widen<Real>(*vec, numbers);
#pragma unroll
          for (int j = 0; j < Layout::kVecSize; ++j) numbers[j] += sums[c][i][j];
          store_vec(numbers, to);
        } else {
          add_vec(sums[c][i], to);
        }
      }
    }
  }

  // Adds weight * grad to the sums; returns the lane's part of the dot products grad * value.
  __device__ __forceinline__ PerCorner<Real, N> add(
      const PerCorner<Real, N>& weights,
      const Real (&grad)[Layout::kVecsPerLane][Layout::kVecSize]) {
    PerCorner<Real, N> dots;
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      dots.of[c] = 0;
#pragma unroll
      for (int g = 0; g < Layout::kVecsPerLane; ++g) {
#pragma unroll
        for (int j = 0; j < Layout::kVecSize; ++j) dots.of[c] += values[c][g][j] * grad[g][j];
        multiply_add(weights.of[c], grad[g], sums[c][g]);
      }
    }
    return dots;
  }

  bool exists[kCorners] = {};  // and its sums are not in memory yet
  Real* sum_row[kCorners];
  Real values[kCorners][Layout::kVecsPerLane][Layout::kVecSize];
  Real sums[kCorners][Layout::kVecsPerLane][Layout::kVecSize];
};

}  // namespace stdeform::cuda
