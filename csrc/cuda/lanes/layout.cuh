// How a row of channels is shared out among the lanes of a warp.
#pragma once

#include "cuda/compat.cuh"

namespace stdeform::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarps = 4;  // of a block, but for the forward's: kForwardWarps
constexpr int kThreads = kWarps * kWarpSize;

// Blocks of the backward sample by sample that a multiprocessor of 64 Ki registers has room for:
// 255 or 168 registers for each thread.
template <class Real>
constexpr int kBackwardBlocks = sizeof(Real) == 8 ? 2 : 3;

// `lanes` lanes share a row; each holds `groups` runs of `group` neighbouring channels, and a run
// is one load. Run i of a lane starts at channel (i * lanes + lane) * group, so that the lanes of a
// row read neighbouring runs. Rows of a `whole` layout are covered exactly by one pass; others take
// as many passes as they need, and lanes past the end are idle.
template <int lanes, int groups, int group, bool whole>
struct RowLayout {
  static constexpr int kLanes = lanes;
  static constexpr int kGroups = groups;
  static constexpr int kGroup = group;
  static constexpr bool kWhole = whole;
  static constexpr int kStep = lanes * group;               // channels from run to run of a lane
  static constexpr int kRows = kWarpSize / lanes;           // of a warp; lanes left over are idle
  static constexpr int kChannels = lanes * groups * group;  // of a pass
};

// Eight channels per lane in runs of `group`, whatever the dtype: of 32 lanes at most two are idle
// for 48 channels and none for a power of two.
template <int channels, int group>
using VectorLayout = RowLayout<channels / 8, 8 / group, group, true>;

// Any number of channels at any address.
using AnyLayout = RowLayout<kWarpSize, 4, 1, false>;

}  // namespace stdeform::cuda
