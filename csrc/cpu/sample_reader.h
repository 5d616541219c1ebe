// Reads the samples of one query and head: where the corners are in the value, and with which
// weights they are read.
//
// The P samples of a head are numbered level by level. They are processed in chunks, stored as
// structures of arrays, one vector of samples per step. The length of a vector is W.
#pragma once

#include <algorithm>
#include <memory>

#include "core/problem.h"
#include "cpu/softmax.h"
// After simd.h: its templates must see the truncate and to_float for vectors that simd.h declares.
#include "core/sampling.h"

namespace stdeform {
namespace {

constexpr int kPrefetch = 4;  // queries ahead
constexpr int kChunk = 64;    // samples; a multiple of every instruction set's lanes

// What all queries have in common: the level of each sample. Axis 0 is x.
template <class Real, int N>
class SampleTable {
  using Int = IntOf<Real>;

 public:
  explicit SampleTable(const Problem& p)
      : count(p.P),
        reference_width(p.boxes ? 2 * N : N),
        level(padded<Int>()),
        first_cell(padded<Int>()),
        half_per_point(padded<Real>()) {
    for (int n = 0; n < N; ++n) cells[n] = padded<Int>(), cell_stride[n] = padded<Int>();
    int64_t first = 0, begin = 0;  // cell and sample of the level
    for (int64_t l = 0; l < p.L; ++l) {
      const int64_t end = begin + p.num_points[l];
      int64_t level_cells = 1;
      for (int n = 0; n < N; ++n) {
        const int64_t axis_cells = p.spatial_shapes[l * N + N - 1 - n];
        for (int64_t i = begin; i < end; ++i) {
          cells[n][i] = Int(axis_cells);
          cell_stride[n][i] = Int(level_cells);
        }
        level_cells *= axis_cells;
      }
      for (int64_t i = begin; i < end; ++i) {
        level[i] = Int(l);
        first_cell[i] = Int(first);
        half_per_point[i] = Real(0.5) / Real(p.num_points[l]);
      }
      first += level_cells;
      begin = end;
    }
  }

  const int64_t count;        // P
  const int reference_width;  // N for points, 2N for boxes: centre, then size
  // Of each sample, [P] padded to whole chunks:
  std::unique_ptr<Int[]> level;
  std::unique_ptr<Int[]> cells[N];        // size of its level along the axis
  std::unique_ptr<Int[]> cell_stride[N];  // distance of neighbours along the axis, in cells
  std::unique_ptr<Int[]> first_cell;      // of its level, in 0..S
  std::unique_ptr<Real[]>
      half_per_point;  // 1 / 2K: an offset of 1 in a box is this part of its size

 private:
  template <class T>
  std::unique_ptr<T[]> padded() const {
    return std::unique_ptr<T[]>(new T[round_up(count, kChunk)]());
  }
};

// How the row of a cell, its D channels, is found from an offset in a Chunk.
//
// In a packed copy of a head, the offset is cell * stride, or `outside`, that of the copy's last
// row, for a corner outside the volume.
template <class Real>
struct PackedRows {
  IntOf<Real> stride, outside;  // in vectors, to reach further with 32 bits

  IntVector<Real> offsets(IntVector<Real> cell, IntVector<Real> is_inside) const {
    return (is_inside & (cell * stride)) | (~is_inside & (IntVector<Real>{} + outside));
  }
  template <class T>
  STDEFORM_INLINE T* find(T* first, IntOf<Real> offset) const {
    return first + int64_t(offset) * kLanes<Real>;
  }
  template <bool to_write, class T>
  STDEFORM_INLINE void prefetch(T*, IntOf<Real>, int64_t) const {}  // the cache holds the copy
};
// In the caller's array, the offset is the cell, or -1 for a corner outside the volume.
template <class T>
struct StridedRows {
  int64_t stride;  // in elements
  T* outside;      // [D], a row that all such corners share

  template <class Ints>
  Ints offsets(Ints cell, Ints is_inside) const {
    return cell | ~is_inside;
  }
  template <class Offset>
  STDEFORM_INLINE T* find(T* first, Offset offset) const {
    return offset < 0 ? outside : first + offset * stride;
  }
  template <bool to_write, class Offset>
  STDEFORM_INLINE void prefetch(T* first, Offset offset, int64_t channels) const {
    stdeform::prefetch<to_write>(find(first, offset), channels);
  }
};

// Whether packing would cost more than the strided reads that it saves. Those need rows of whole
// vectors.
template <class Real>
bool has_few_samples(const Problem& p) {
  return (p.Q * p.P << p.N) <= 2 * p.S && p.D % kLanes<Real> == 0;
}

// One chunk of the samples of a query and head.
template <class Real, int N>
struct Chunk {
  static constexpr int kCorners = 1 << N;  // bit n of a corner: the higher cell along axis n
  int count;
  alignas(64) IntOf<Real> offset[kCorners][kChunk];  // of the corner's row: see *Rows
  alignas(64) Real weight[kCorners][kChunk];         // interpolation weight * attention weight
  // Only the backward needs these.
  alignas(64) Real attention[kChunk];
  alignas(64) Real position[N][kChunk];  // as passed: see core/problem.h
  alignas(64) Real scale[N][kChunk];     // derivative of the pixel coordinate by the position
  alignas(64) Real low_weight[N][kChunk], high_weight[N][kChunk];
  alignas(64) Real low_slope[N][kChunk], high_slope[N][kChunk];
};

// Reads the samples of a head, query by query.
template <class Real, int N>
class SampleReader {
  static constexpr int W = kLanes<Real>;
  using Reals = Vector<Real>;
  using Ints = IntVector<Real>;

 public:
  SampleReader(const Problem& p, const SampleTable<Real, N>& table)
      : p_(p),
        table_(table),
        attention_(new Real[round_up(table.count, kChunk)]()),
        reference_(new Real[p.L * 2 * N]()) {}

  // Prefetches what a later query of the same head will read. The hardware does not predict the
  // stride between the queries of a head.
  void prefetch(int64_t b, int64_t q, int64_t m) const {
    prefetch_numbers(p_.positions, b, q, m, table_.count * N);
    prefetch_numbers(p_.scores, b, q, m, table_.count);
  }

  // Starts a query. Returns its attention weights, [P]: the scores, after softmax if they are
  // logits.
  const Real* begin(int64_t b, int64_t q, int64_t m) {
    visit_dtype(p_.scores.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t stride = p_.scores.stride[3];
      const T* from = at<T>(p_.scores, b, q, m);  // [P]
      if (stride == 1) {
        load_numbers(from, table_.count, attention_.get());
      } else {
        for (int64_t i = 0; i < table_.count; ++i) attention_[i] = Real(to_real(from[i * stride]));
      }
    });
    if (p_.reference.data) {
      softmax(attention_.get(), table_.count);
      read_reference(b, q);
    }
    return attention_.get();
  }

  // Reads samples [first, first + chunk.count) of the query that was started last.
  template <class Rows>
  void read(int64_t b, int64_t q, int64_t m, int64_t first, Rows rows,
            Chunk<Real, N>& chunk) const {
    chunk.count = int(table_.count - first < kChunk ? table_.count - first : kChunk);
    read_positions(b, q, m, first, chunk);
    const Real* reference = p_.reference.data ? reference_.get() : nullptr;
    for (int i = 0; i < chunk.count; i += W) find_corners(first, i, rows, reference, chunk);
  }

 private:
  void read_reference(int64_t b, int64_t q) const {
    const int width = table_.reference_width;
    visit_dtype(p_.reference.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.reference.stride;
      const T* from = at<T>(p_.reference, b, q, 0);  // [L, N or 2N]
      for (int64_t l = 0; l < p_.L; ++l)
        for (int r = 0; r < width; ++r)
          reference_[l * width + r] = Real(to_real(from[l * s[2] + r * s[3]]));
    });
  }

  static void prefetch_numbers(const Array& from, int64_t b, int64_t q, int64_t m, int64_t n) {
    visit_dtype(from.dtype, [&](auto zero) {
      stdeform::prefetch<false>(at<decltype(zero)>(from, b, q, m), n);
    });
  }

  void read_positions(int64_t b, int64_t q, int64_t m, int64_t first, Chunk<Real, N>& chunk) const {
    alignas(64) Real interleaved[kChunk * N];  // [sample][axis]
    visit_dtype(p_.positions.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.positions.stride;
      const T* from = at<T>(p_.positions, b, q, m) + first * s[3];  // [P, N]
      if (s[4] == 1 && s[3] == N) {
        load_numbers(from, chunk.count * N, interleaved);
      } else {
        for (int i = 0; i < chunk.count; ++i)
          for (int n = 0; n < N; ++n)
            interleaved[i * N + n] = Real(to_real(from[i * s[3] + n * s[4]]));
      }
    });
    for (int i = 0; i < chunk.count; i += W) {
      Reals axes[N];
      deinterleave<N>(interleaved + i * N, axes);
      for (int n = 0; n < N; ++n) store(&chunk.position[n][i], axes[n]);
    }
  }

  // For the W samples from sample i: pixel coordinate = position * scale + shift, which is
  //   locations           location * size - 0.5
  //   offsets from point  offset + (reference * size - 0.5)
  //   offsets from box    offset * (box * size / 2K) + (centre * size - 0.5)
  STDEFORM_INLINE void scale_and_shift(const Real* reference, int64_t i, Reals* scale,
                                       Reals* shift) const {
    for (int n = 0; n < N; ++n) {
      scale[n] = to_float(load(&table_.cells[n][i]));
      shift[n] = Reals{} - Real(0.5);
    }
    if (!reference) return;
    // The levels ascend within a vector, so each overwrites the lanes from its first sample on.
    const Ints levels = load(&table_.level[i]);
    const int64_t first = table_.level[i];
    const int64_t last = table_.level[std::min(i + W, table_.count) - 1];
    const int width = table_.reference_width;
    for (int n = 0; n < N; ++n) {
      Reals centre = {}, box = {};
      for (int64_t l = first; l <= last; ++l) {
        const Real* level = reference + l * width;
        const auto from_here = levels >= Ints{} + IntOf<Real>(l);
        centre = from_here ? Reals{} + level[n] : centre;
        if (p_.boxes) box = from_here ? Reals{} + level[N + n] : box;
      }
      shift[n] += centre * scale[n];
      scale[n] = p_.boxes ? box * scale[n] * load(&table_.half_per_point[i]) : Reals{} + Real(1);
    }
  }

  // Offsets and weights of the corners of W samples, from sample i of the chunk.
  template <class Rows>
  STDEFORM_INLINE void find_corners(int64_t first, int i, Rows rows, const Real* reference,
                                    Chunk<Real, N>& chunk) const {
    Ints cell[N][2], is_inside[N][2];
    Reals weight[N][2], scale[N], shift[N];
    scale_and_shift(reference, first + i, scale, shift);
    for (int n = 0; n < N; ++n) {
      store(&chunk.scale[n][i], scale[n]);
      const Reals pixel = load(&chunk.position[n][i]) * scale[n] + shift[n];
      const Ints cells = load(&table_.cells[n][first + i]);
      const Ints stride = load(&table_.cell_stride[n][first + i]);
      const auto s = sample_axis(pixel, to_float(cells), cells);
      cell[n][0] = s.low * stride, cell[n][1] = s.high * stride;
      is_inside[n][0] = s.has_low, is_inside[n][1] = s.has_high;
      weight[n][0] = s.low_weight, weight[n][1] = s.high_weight;
      store(&chunk.low_weight[n][i], s.low_weight);
      store(&chunk.high_weight[n][i], s.high_weight);
      store(&chunk.low_slope[n][i], s.low_slope);
      store(&chunk.high_slope[n][i], s.high_slope);
    }
    const Ints first_cell = load(&table_.first_cell[first + i]);
    const Reals attention = load(&attention_[first + i]);
    store(&chunk.attention[i], attention);
#pragma GCC unroll 8
    for (int c = 0; c < (1 << N); ++c) {
      Reals corner_weight = attention;
      Ints corner_cell = first_cell, corner_is_inside = ~Ints{};
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) {
        corner_weight *= weight[n][c >> n & 1];
        corner_cell += cell[n][c >> n & 1];
        corner_is_inside &= is_inside[n][c >> n & 1];
      }
      store(&chunk.weight[c][i], corner_weight);
      store(&chunk.offset[c][i], rows.offsets(corner_cell, corner_is_inside));
    }
  }

  const Problem& p_;
  const SampleTable<Real, N>& table_;
  const std::unique_ptr<Real[]> attention_;  // [P], padded to whole chunks
  const std::unique_ptr<Real[]> reference_;  // [L, N or 2N]
};

}  // namespace
}  // namespace stdeform
