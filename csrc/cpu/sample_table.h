// What all queries have in common: the level of each sample, and where in the value it is.
#pragma once

#include <memory>

#include "cpu/rows.h"

namespace stdeform {
namespace {

constexpr int kChunk = 64;  // samples; a multiple of every instruction set's lanes

// The P samples of a head are numbered level by level. Axis 0 is x.
template <class Real, int N>
class SampleTable {
  using Int = IntOf<Real>;

 public:
  // `row`: from a row's offset to the next, see rows.h.
  SampleTable(const Problem& p, const RowNumbers& rows, int64_t row)
      : count(p.P),
        reference_width(p.boxes ? 2 * N : N),
        level(padded<Int>()),
        first_cell(padded<Int>()),
        half_per_point(padded<Real>()) {
    for (int n = 0; n < N; ++n) cells[n] = padded<Int>(), cell_stride[n] = padded<Int>();
    int64_t begin = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      const int64_t end = begin + p.num_points[l];
      int64_t stride = row;
      for (int n = 0; n < N; ++n) {
        const int64_t axis_cells = p.spatial_shapes[l * N + N - 1 - n];
        for (int64_t i = begin; i < end; ++i) {
          cells[n][i] = Int(axis_cells);
          cell_stride[n][i] = Int(stride);
        }
        stride *= n == 0 ? axis_cells + rows.padding : axis_cells;
      }
      for (int64_t i = begin; i < end; ++i) {
        level[i] = Int(l);
        first_cell[i] = Int((rows.levels[size_t(l)].begin + rows.padding) * row);
        half_per_point[i] = Real(0.5) / Real(p.num_points[l]);
      }
      begin = end;
    }
  }

  const int64_t count;        // P
  const int reference_width;  // N for points, 2N for boxes: centre, then size
  // Of each sample, [P] padded to whole chunks:
  std::unique_ptr<Int[]> level;
  std::unique_ptr<Int[]> cells[N];  // size of its level along the axis
  std::unique_ptr<Int[]>
      cell_stride[N];                 // from a cell's offset to that of its neighbour on the axis
  std::unique_ptr<Int[]> first_cell;  // offset of the level's first cell
  std::unique_ptr<Real[]>
      half_per_point;  // 1 / 2K: an offset of 1 in a box is this part of its size

 private:
  template <class T>
  std::unique_ptr<T[]> padded() const {
    return std::unique_ptr<T[]>(new T[round_up(count, kChunk)]());
  }
};

}  // namespace
}  // namespace stdeform
