// Which share of what a multiprocessor reads misses its L1 cache, for an order of work: the rows of
// the samples' corners, read as the forward kernel reads them, through an LRU cache.
#include <algorithm>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "cuda/schedule.h"

using namespace stdeform::cuda;

namespace {

constexpr int64_t kLine = 128, kSector = 32;  // bytes; a line is kept, a sector is fetched

class Cache {
 public:
  explicit Cache(int64_t bytes) : lines_(bytes / kLine) {}

  void read(int64_t address, int64_t bytes) {
    for (int64_t at = address / kSector; at <= (address + bytes - 1) / kSector; ++at) sector(at);
  }

  int64_t sectors = 0, missed = 0;

 private:
  struct Line {
    int64_t number;
    uint32_t sectors;  // that have been fetched
  };

  void sector(int64_t number) {
    ++sectors;
    const int64_t line = number * kSector / kLine;
    const uint32_t bit = 1u << (number % (kLine / kSector));
    if (const auto found = at_.find(line); found != at_.end()) {
      order_.splice(order_.begin(), order_, found->second);
    } else {
      order_.push_front({line, 0});
      at_[line] = order_.begin();
      if (int64_t(order_.size()) > lines_) {
        at_.erase(order_.back().number);
        order_.pop_back();
      }
    }
    missed += !(order_.front().sectors & bit);
    order_.front().sectors |= bit;
  }

  int64_t lines_;
  std::list<Line> order_;  // the one read last in front
  std::unordered_map<int64_t, std::list<Line>::iterator> at_;
};

}  // namespace

struct Setting {
  const int64_t* spatial_shapes;           // [L, N]
  const int32_t* rows;                     // [M, Q, samples, 2^N]; -1: no cell
  int64_t brick[3];                        // x, y, t; 0: plain order
  int64_t N, M, row_bytes, Q, L, samples;  // samples of a row, on all levels
  // Warps of a block, rows of a tile, and how many blocks a multiprocessor has at a time. `dealt`:
  // block after block has the next tiles and goes to the next multiprocessor; otherwise each block
  // has a multiprocessor and a run of tiles.
  int64_t warps, rows_of_tile, resident, dealt, multiprocessors, cache_bytes;
};

// The share of sectors that are missed.
extern "C" double miss_rate(const Setting* s) {
  KernelParams params = {};
  params.problem.N = int(s->N);
  params.B = 1, params.Q = int32_t(s->Q), params.M = int32_t(s->M), params.L = int32_t(s->L);
  int32_t cells = 0;
  for (int64_t l = 0; l < s->L; ++l) {
    params.first_cell[l] = cells;
    params.size[l][2] = 1;
    int32_t of_level = 1;
    for (int64_t n = 0; n < s->N; ++n) {
      params.size[l][n] = int32_t(s->spatial_shapes[l * s->N + s->N - 1 - n]);
      of_level *= params.size[l][n];
    }
    cells += of_level;
  }
  params.schedule.in_bricks = s->brick[0] > 0;
  std::copy_n(s->brick, 3, params.schedule.brick);

  const int rows_of_tile = int(s->rows_of_tile);
  const int64_t of_head = tiles_of_head(params, rows_of_tile);
  const int64_t tiles = tiles_of_all(params, rows_of_tile);
  const int corners = 1 << s->N;
  int64_t sectors = 0, missed = 0;
  for (int64_t sm = 0; sm < s->multiprocessors; ++sm) {
    std::vector<int64_t> own;  // tiles of the multiprocessor, in order
    if (s->dealt) {
      for (int64_t block = sm; block * s->warps < tiles; block += s->multiprocessors) {
        const int64_t end = std::min(tiles, (block + 1) * s->warps);
        for (int64_t tile = block * s->warps; tile < end; ++tile) own.push_back(tile);
      }
    } else {
      const TilePartition partition(tiles, s->multiprocessors);
      for (int64_t n = 0; n < partition.count(sm); ++n) own.push_back(partition.first(sm) + n);
    }
    const int64_t count = own.size(), at_a_time = s->warps * s->resident;
    Cache cache(s->cache_bytes);
    for (int64_t first = 0; first < count; first += at_a_time) {
      for (int64_t i = 0; i < s->samples; ++i) {
        for (int64_t n = first; n < std::min(count, first + at_a_time); ++n) {
          const int64_t tile = own[n];
          const int64_t head = tile / of_head;
          for (int r = 0; r < rows_of_tile; ++r) {
            const int64_t index = tile % of_head * rows_of_tile + r;
            if (index >= s->Q) break;
            const int64_t query = query_at(params, int32_t(index));
            const int32_t* rows = s->rows + ((head * s->Q + query) * s->samples + i) * corners;
            for (int c = 0; c < corners; ++c) {
              if (rows[c] < 0) continue;
              cache.read((rows[c] * s->M + head) * s->row_bytes, s->row_bytes);
            }
          }
        }
      }
    }
    sectors += cache.sectors, missed += cache.missed;
  }
  return sectors ? double(missed) / double(sectors) : 0;
}
