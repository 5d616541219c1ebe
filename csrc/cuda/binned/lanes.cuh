// What the lanes of a warp hold of a bin, and what they leave for each other in shared memory.
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

// The lanes of a warp: corners, and of their rows the channels that the layout says.
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
struct alignas(sizeof(Real) * kBinCorners<N>) OfCorners {
  Real of[kBinCorners<N>];
};

// A sample as all lanes of the warp see it.
template <class T, int N>
struct alignas(16) BinSample {
  Compute<T> weight[1 << N];  // interpolation weight times attention, of each corner
  const T* grad_row;          // of grad_out
  const T* value_row;         // of the lowest corner that exists
  Compute<T>* sum_row;        // the same row of the value's gradient
  uint32_t to_next[N];        // rows from the lower to the higher corner along each axis
  uint32_t exists;            // a bit for each corner
};

// The lanes' shares of the dot products of a warp's samples with their corners: of each sample
// [kLanes of a corner][corners]. The samples are an odd number of shares of four apart, so that
// lanes that sum them up read different banks.
template <class Real, int N>
class BinDots {
 public:
  struct alignas(16) Share {
    Real of[4];
  };
  static constexpr int kWords = kWarpSize * kBinCorners<N>;  // of a sample
  static constexpr int kPitch = kWords / 4 + 1;
  static constexpr int kSize = kBinBatch<Real> * kPitch;  // of memory

  __device__ explicit BinDots(Share* memory) : memory_(memory) {}

  // Where a lane's shares for sample 0 lie; those for the samples after it are kStep apart.
  static constexpr int kStep = 4 * kPitch / kBinCorners<N>;
  __device__ __forceinline__ OfCorners<Real, N>* of_lane(int corner, int in_row) const {
    constexpr int kOfLane = kBinCorners<N>;
    return reinterpret_cast<OfCorners<Real, N>*>(memory_) + (in_row << N) / kOfLane +
           corner / kOfLane;
  }

  __device__ __forceinline__ void add_up(int sample, Real (&dots)[1 << N]) const {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const Share share = memory_[sample * kPitch + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) dots[(4 * i + j) % (1 << N)] += share.of[j];
    }
  }

 private:
  Share* memory_;
};

// A lane's corners of one bin.
template <class T, int N, class Layout>
struct BinCorner {
  using Real = Compute<T>;
  static constexpr int kCorners = kBinCorners<N>;

  // Begins the bin of a sample: loads the rows of the lane's corners, starts their sums anew.
  __device__ __forceinline__ void open(const Problem& p, const BinSample<T, N>& sample,
                                       int first_corner, int channel, int channels_left,
                                       bool wants_values) {
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      const int corner = first_corner + c;
      exists[c] = sample.exists >> corner & 1;
      uint32_t row = 0;
#pragma unroll
      for (int n = 0; n < N; ++n) row += corner >> n & 1 ? sample.to_next[n] : 0;
      sum_row[c] = sample.sum_row + row * uint64_t(p.M * p.D) + channel;
      LoadedRow<T, Layout> loaded = {};
      if (exists[c] && wants_values) {
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

  // Adds the sums to memory; alone, if no other warp can be adding to the same rows.
  __device__ __forceinline__ void close(bool alone, int channels_left) {
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      if (!exists[c]) continue;
      exists[c] = false;
#pragma unroll
      for (int i = 0; i < Layout::kVecsPerLane; ++i) {
        if (!Layout::kWhole && i * Layout::kStep >= channels_left) continue;
        Real* to = sum_row[c] + i * Layout::kStep;
        if (alone) {
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

  // Adds a sample's share to the sums; returns the products with the corners' rows.
  __device__ __forceinline__ OfCorners<Real, N> add(
      const OfCorners<Real, N>& weights,
      const Real (&grad)[Layout::kVecsPerLane][Layout::kVecSize]) {
    OfCorners<Real, N> dots;
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

  bool exists[kCorners] = {};  // and is not added yet
  Real* sum_row[kCorners];
  Real values[kCorners][Layout::kVecsPerLane][Layout::kVecSize];
  Real sums[kCorners][Layout::kVecsPerLane][Layout::kVecSize];
};

}  // namespace stdeform::cuda
