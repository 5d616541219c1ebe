// How the channels of a row, a cell's or a query-head's, are divided among the lanes of a warp.
#pragma once

#include "cuda/compat.cuh"
#include "cuda/params.h"

namespace stdeform::cuda {

constexpr int kWarps = 4;  // of a block; the forward has kForwardWarps
constexpr int kThreads = kWarps * kWarpSize;

// Blocks of the direct backward that a multiprocessor of 64 Ki registers has room for: 255 or 168
// registers for each thread.
template <class Real>
constexpr int kBackwardBlocks = sizeof(Real) == 8 ? 2 : 3;

// `lanes` lanes share a row; each holds `vecs_per_lane` vectors of `vec_size` neighbouring
// channels, and a vector is one load. Vector i of a lane starts at channel (i * lanes + lane) *
// vec_size, so that the lanes of a row read neighbouring vectors. One pass covers a row of a
// `whole` layout exactly; other layouts take as many passes as they need, and lanes past the end
// are idle.
template <int lanes, int vecs_per_lane, int vec_size, bool whole>
struct RowLayout {
  static constexpr int kLanes = lanes;
  static constexpr int kVecsPerLane = vecs_per_lane;
  static constexpr int kVecSize = vec_size;
  static constexpr bool kWhole = whole;
  static constexpr int kStep = lanes * vec_size;   // channels from vector to vector of a lane
  static constexpr int kRows = kWarpSize / lanes;  // of a warp; lanes left over are idle
  static constexpr int kChannels = lanes * vecs_per_lane * vec_size;  // of a pass
};

// Eight channels per lane in vectors of `vec_size`, for every dtype: of 32 lanes at most two are
// idle for 48 channels and none for a power of two.
template <int channels, int vec_size>
using VectorLayout = RowLayout<channels / 8, 8 / vec_size, vec_size, true>;

// Any number of channels at any address.
using AnyLayout = RowLayout<kWarpSize, 4, 1, false>;

}  // namespace stdeform::cuda
