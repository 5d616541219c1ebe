// How the row of a cell, its D channels, is found from an offset in a Chunk.
//
// Corners outside the volume have rows of their own: the backward adds to them as well, and an
// addition waits for the one before it to the same row.
#pragma once

#include <type_traits>
#include <vector>

#include "core/problem.h"
#include "cpu/simd.h"

namespace stdeform {
namespace {

// Numbers the rows: the levels after one another, line by line along x. In a packed copy, each line
// begins with a row outside the volume, and one follows the last line; so the two corners of a
// sample along x are always neighbours.
class RowNumbers {
 public:
  struct Level {
    int64_t begin, end;  // its rows
    int64_t first_cell, width;
  };

  RowNumbers(const Problem& p, bool is_packed) : padding(is_packed) {
    int64_t row = 0, cell = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      const int64_t* sizes = p.spatial_shapes + l * p.N;
      const int64_t width = sizes[p.N - 1];
      const int64_t lines = sizes[0] * (p.N == 3 ? sizes[1] : 1);
      levels.push_back({row, row + lines * (width + padding), cell, width});
      row = levels.back().end, cell += lines * width;
    }
  }

  int64_t count() const { return levels.back().end; }

  // Of a packed copy: calls f(row, its cell, the cell of the next row) for rows [begin, end); -1
  // for a row outside.
  template <class F>
  void for_each(int64_t begin, int64_t end, F f) const {
    for (const Level& level : levels) {
      int64_t row = std::max(begin, level.begin);
      const int64_t last = std::min(end, level.end), line = level.width + 1;
      int64_t x = (row - level.begin) % line - 1;
      int64_t cell = level.first_cell + (row - level.begin) / line * level.width + x;
      for (; row < last; ++row) {
        f(row, x < 0 ? -1 : cell, x + 1 < level.width ? cell + 1 : -1);
        if (++x == level.width) {
          x = -1;  // the cell is that before the next line's first
        } else {
          ++cell;
        }
      }
    }
  }

  const int64_t padding;  // rows before each line
  std::vector<Level> levels;
};

// In a packed copy of a head, the offset is row * stride, and the two corners along x share the
// lower one's. The last rows are outside.
template <class Real>
struct PackedRows {
  static constexpr bool kNeighbours = true;
  IntOf<Real> stride, outside;  // in vectors

  PackedRows(int64_t vectors, int64_t rows)
      : stride(IntOf<Real>(vectors)), outside(IntOf<Real>(vectors * rows)) {}

  IntVector<Real> offsets(int corner, IntVector<Real> offset, IntVector<Real> is_inside) const {
    return is_inside ? offset : IntVector<Real>{} + (outside + corner * stride);
  }
  // Offsets use all 32 bits, to reach further.
  template <class Chunk>
  STDEFORM_INLINE int64_t offset(const Chunk& chunk, int corner, int sample) const {
    const IntOf<Real> of_low = chunk.offset[corner & ~1][sample];
    return int64_t(std::make_unsigned_t<IntOf<Real>>(of_low)) + (corner & 1) * stride;
  }
  template <class T>
  STDEFORM_INLINE T* find(T* first, int64_t offset) const {
    return first + offset * kLanes<Real>;
  }
  template <bool to_write, class T>
  STDEFORM_INLINE void prefetch(T*, int64_t, int64_t) const {}  // the cache holds the copy
};

// In the caller's array, the offset is the cell, or -1 - corner for a corner outside the volume.
template <class T>
struct StridedRows {
  static constexpr bool kNeighbours = false;
  int64_t stride;          // in elements
  T* outside;              // [2^N, outside_stride]
  int64_t outside_stride;  // 0 if all corners share a row

  template <class Ints>
  Ints offsets(int corner, Ints cell, Ints is_inside) const {
    return is_inside ? cell : Ints{} - 1 - corner;
  }
  template <class Chunk>
  STDEFORM_INLINE int64_t offset(const Chunk& chunk, int corner, int sample) const {
    return chunk.offset[corner][sample];
  }
  STDEFORM_INLINE T* find(T* first, int64_t offset) const {
    return offset < 0 ? outside + ~offset * outside_stride : first + offset * stride;
  }
  template <bool to_write>
  STDEFORM_INLINE void prefetch(T* first, int64_t offset, int64_t channels) const {
    stdeform::prefetch<to_write>(find(first, offset), channels);
  }
};

// Whether packing would cost more than the strided reads that it saves. Those need rows of whole
// vectors.
template <class Real>
bool has_few_samples(const Problem& p) {
  return (p.Q * p.P << p.N) <= 2 * p.S && p.D % kLanes<Real> == 0;
}

}  // namespace
}  // namespace stdeform
