// Which tiles a warp works on. A tile is as many query-heads as a warp works on at a time: queries
// that follow each other in the schedule, of one head of one batch element. A block owns a range of
// tiles and its warps take them alternately, so that what they read at the same time is close in
// memory, whichever multiprocessor runs the block.
#pragma once

#include "cuda/compat.cuh"
#include "cuda/lanes/layout.cuh"
#include "cuda/schedule.h"

namespace stdeform::cuda {

// A tile, and which split of its samples the warp takes.
struct Tile {
  int b, m;
  int32_t in_head;  // its number among the tiles of its head
  int32_t start;    // its first index in the schedule; past the last one where there is no tile
  int split, splits;
  int at_once;  // tiles that the block works on at a time; the warp's next one is as far away
};

// Calls visit(tile) equally often on every warp of the block.
template <int queries_per_tile, int warps, class F>
__device__ __forceinline__ void for_each_tile(const KernelParams& params,
                                              const TilePartition& tiles, int warp, F visit) {
  static_assert(warps <= kForwardWarps, "Schedule::splits has an entry for each number of tiles");
  const int32_t of_head = tiles_of_head(params, queries_per_tile);
  const int64_t first = tiles.first(blockIdx.x), bm = first / of_head;
  Tile tile;
  tile.b = int(bm / params.M), tile.m = int(bm % params.M);
  tile.in_head = int32_t(first - bm * of_head);
  tile.splits = 0;
  int ahead = 0;  // of the first tile that is left
  // Tiles of a block fit 31 bits: no device has memory for more query-heads.
  for (auto left = int32_t(tiles.count(blockIdx.x)); left > 0; left -= tile.at_once) {
    const int splits = params.schedule.splits[left < warps ? left : warps];
    if (splits != tile.splits) {
      tile.splits = splits;
      tile.at_once = warps / splits;
      tile.split = warp % splits;
      tile.in_head += warp / splits - ahead;
      ahead = warp / splits;
    }
    while (tile.in_head >= of_head) {
      tile.in_head -= of_head;
      if (++tile.m == params.M) tile.m = 0, ++tile.b;
    }
    tile.start = ahead < tile.at_once && ahead < left ? tile.in_head * queries_per_tile : params.Q;
    visit(tile);
    tile.in_head += tile.at_once;
  }
}

// The queries of a warp's tiles. Finding one takes many instructions, so every lane finds one: of
// this tile, and of the warp's next tiles.
template <int queries_per_tile>
class TileQueries {
 public:
  // Goes on to the warp's next tile. All lanes call it and `query`.
  __device__ __forceinline__ void next(const KernelParams& params, const Tile& tile, int lane) {
    first_ += queries_per_tile;
    if (first_ + queries_per_tile > kWarpSize || tile.splits != splits_) {
      const auto in_head = uint32_t(tile.in_head) + lane / queries_per_tile * tile.at_once;
      const auto index =
          int32_t(in_head % uint32_t(tiles_of_head(params, queries_per_tile))) * queries_per_tile +
          lane % queries_per_tile;
      query_ = index < params.Q ? query_at(params, index) : 0;
      first_ = 0;
      splits_ = tile.splits;
    }
  }

  // The query of the tile's query-head `qh`.
  __device__ __forceinline__ int32_t query(int qh) const {
    return __shfl_sync(~0u, query_, first_ + qh);
  }

 private:
  int32_t query_;
  int first_ = 0, splits_ = 0;
};

}  // namespace stdeform::cuda
