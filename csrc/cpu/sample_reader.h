// From what the caller passes for one query and head to where its samples read and how much.
//
// Samples of a head are numbered i = l * K + k. They are worked on in chunks, as structures of
// arrays, a vector of samples at a time.
#pragma once

#include <algorithm>
#include <memory>

#include "core/problem.h"
#include "cpu/softmax.h"
// After simd.h, whose truncate and to_float for vectors its templates must see.
#include "core/sampling.h"

namespace stdeform {
namespace {

constexpr int kPrefetch = 4;  // queries ahead
constexpr int kChunk = 64;    // samples; a multiple of every instruction set's lanes

// What is the same for every query: the level of each sample. Axes count from x.
template <class Real, int N>
class SampleTable {
  using Int = IntOf<Real>;

 public:
  explicit SampleTable(const Problem& p) : count(p.L * p.K), level(padded()), first_cell(padded()) {
    for (int n = 0; n < N; ++n) cells[n] = padded(), cell_stride[n] = padded();
    int64_t first = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      int64_t level_cells = 1;
      for (int n = 0; n < N; ++n) {
        const int64_t axis_cells = p.spatial_shapes[l * N + N - 1 - n];
        for (int64_t i = l * p.K; i < (l + 1) * p.K; ++i) {
          cells[n][i] = Int(axis_cells);
          cell_stride[n][i] = Int(level_cells);
        }
        level_cells *= axis_cells;
      }
      for (int64_t i = l * p.K; i < (l + 1) * p.K; ++i) {
        level[i] = Int(l);
        first_cell[i] = Int(first);
      }
      first += level_cells;
    }
  }

  int64_t count;  // L * K
  std::unique_ptr<Int[]> level;
  std::unique_ptr<Int[]> cells[N];        // of the sample's level along the axis
  std::unique_ptr<Int[]> cell_stride[N];  // cells between neighbours along the axis
  std::unique_ptr<Int[]> first_cell;      // of the level, in 0..S

 private:
  std::unique_ptr<Int[]> padded() const {
    return std::unique_ptr<Int[]>(new Int[round_up(count, kChunk)]());
  }
};

// How a cell's row of channels is found: `unit * offset` elements from the first row, where offset
// is cell * stride, or `outside` for a corner that does not exist, where a row of zeros lies.
template <class Real>
struct PackedRows {
  using Offset = IntOf<Real>;
  static constexpr int unit = kLanes<Real>;  // a vector, so that 32 bits reach far
  Offset stride, outside;
};
struct StridedRows {
  using Offset = int64_t;
  static constexpr int unit = 1;
  Offset stride, outside;
};

// One chunk of the samples of a query and head.
template <class Real, int N, class Rows>
struct Chunk {
  static constexpr int kCorners = 1 << N;  // bit n of a corner: the higher cell along axis n
  int count;
  alignas(64) typename Rows::Offset offset[kCorners][kChunk];  // of the corner's row
  alignas(64) Real weight[kCorners][kChunk];  // interpolation weight times attention
  // What the backward needs besides.
  alignas(64) Real attention[kChunk];
  alignas(64) Real position[N][kChunk];  // as passed: location or offset
  alignas(64) Real scale[N][kChunk];     // pixel coordinate by position
  alignas(64) Real low_weight[N][kChunk], high_weight[N][kChunk];
  alignas(64) Real low_slope[N][kChunk], high_slope[N][kChunk];
};

// Reads the samples of one batch row and head, query by query.
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

  // Starts to fetch what a later query of the same head will read. Queries of a head lie a stride
  // apart that hardware does not foresee.
  void prefetch(int64_t b, int64_t q, int64_t m) const {
    prefetch_numbers(p_.positions, b, q, m, table_.count * N);
    prefetch_numbers(p_.scores, b, q, m, table_.count);
  }

  // Reads what the samples of a query share. Returns the attention weights of all of them,
  // softmaxed here if scores are logits.
  const Real* begin(int64_t b, int64_t q, int64_t m) {
    visit_dtype(p_.scores.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.scores.stride;
      const T* from = static_cast<const T*>(p_.scores.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[4] == 1 && (s[3] == p_.K || p_.L == 1)) {
        load_numbers(from, table_.count, attention_.get());
      } else {
        for (int64_t l = 0, i = 0; l < p_.L; ++l)
          for (int64_t k = 0; k < p_.K; ++k, ++i)
            attention_[i] = Real(to_real(from[l * s[3] + k * s[4]]));
      }
    });
    if (p_.reference.data) {
      softmax(attention_.get(), table_.count);
      read_reference(b, q);
    }
    return attention_.get();
  }

  // Samples [first, first + chunk.count) of the query that was begun last.
  template <class Rows>
  void read(int64_t b, int64_t q, int64_t m, int64_t first, Rows rows,
            Chunk<Real, N, Rows>& chunk) const {
    chunk.count = int(table_.count - first < kChunk ? table_.count - first : kChunk);
    read_positions(b, q, m, first, chunk);
    const Real* reference = p_.reference.data ? reference_.get() : nullptr;
    for (int i = 0; i < chunk.count; i += W) find_corners(first, i, rows, reference, chunk);
  }

 private:
  void read_reference(int64_t b, int64_t q) const {
    const int width = p_.boxes ? 2 * N : N;
    visit_dtype(p_.reference.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.reference.stride;
      const T* from = static_cast<const T*>(p_.reference.data) + b * s[0] + q * s[1];
      for (int64_t l = 0; l < p_.L; ++l)
        for (int r = 0; r < width; ++r)
          reference_[l * width + r] = Real(to_real(from[l * s[2] + r * s[3]]));
    });
  }

  static void prefetch_numbers(const Array& a, int64_t b, int64_t q, int64_t m, int64_t numbers) {
    visit_dtype(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* from = static_cast<const T*>(a.data);
      stdeform::prefetch<false>(from + b * a.stride[0] + q * a.stride[1] + m * a.stride[2],
                                numbers);
    });
  }

  template <class Rows>
  void read_positions(int64_t b, int64_t q, int64_t m, int64_t first,
                      Chunk<Real, N, Rows>& chunk) const {
    alignas(64) Real records[kChunk * N];
    visit_dtype(p_.positions.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.positions.stride;
      const T* from = static_cast<const T*>(p_.positions.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[5] == 1 && s[4] == N && (s[3] == p_.K * N || p_.L == 1)) {
        load_numbers(from + first * N, chunk.count * N, records);
      } else {
        for (int i = 0; i < chunk.count; ++i) {
          const T* point = from + (first + i) / p_.K * s[3] + (first + i) % p_.K * s[4];
          for (int n = 0; n < N; ++n) records[i * N + n] = Real(to_real(point[n * s[5]]));
        }
      }
    });
    for (int i = 0; i < chunk.count; i += W) {
      Reals axes[N];
      take_apart<N>(records + i * N, axes);
      for (int n = 0; n < N; ++n) store(&chunk.position[n][i], axes[n]);
    }
  }

  // What turns the positions of one vector of samples, from sample i, into pixel coordinates:
  //   locations  location * size - 0.5
  //   points     offset + (reference * size - 0.5)
  //   boxes      offset * (box * size / 2K) + (centre * size - 0.5)
  STDEFORM_INLINE void scale_and_shift(const Real* reference, int64_t i, Reals* scale,
                                       Reals* shift) const {
    for (int n = 0; n < N; ++n) {
      scale[n] = to_float(load(&table_.cells[n][i]));
      shift[n] = Reals{} - Real(0.5);
    }
    if (!reference) return;
    // The levels of a vector come one after the other; each takes over the lanes from its first on.
    const Ints levels = load(&table_.level[i]);
    const int64_t first = table_.level[i];
    const int64_t last = table_.level[std::min(i + W, table_.count) - 1];
    const int width = p_.boxes ? 2 * N : N;
    for (int n = 0; n < N; ++n) {
      Reals centre = {}, box = {};
      for (int64_t l = first; l <= last; ++l) {
        const Real* level = reference + l * width;
        const auto from_here = levels >= Ints{} + IntOf<Real>(l);
        centre = from_here ? Reals{} + level[n] : centre;
        if (p_.boxes) box = from_here ? Reals{} + level[N + n] : box;
      }
      shift[n] += centre * scale[n];
      scale[n] = p_.boxes ? box * scale[n] * half_point_ : Reals{} + Real(1);
    }
  }

  // The corners of one vector of samples, from sample i of the chunk.
  template <class Rows>
  STDEFORM_INLINE void find_corners(int64_t first, int i, Rows rows, const Real* reference,
                                    Chunk<Real, N, Rows>& chunk) const {
    Ints cell[N][2], exists[N][2];
    Reals weight[N][2], scale[N], shift[N];
    scale_and_shift(reference, first + i, scale, shift);
    for (int n = 0; n < N; ++n) {
      store(&chunk.scale[n][i], scale[n]);
      const Reals pixel = load(&chunk.position[n][i]) * scale[n] + shift[n];
      const Ints cells = load(&table_.cells[n][first + i]);
      const Ints stride = load(&table_.cell_stride[n][first + i]);
      const auto s = sample_axis(pixel, to_float(cells), cells);
      cell[n][0] = s.low * stride, cell[n][1] = s.high * stride;
      exists[n][0] = s.has_low, exists[n][1] = s.has_high;
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
      Ints corner_cell = first_cell, corner_exists = ~Ints{};
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) {
        corner_weight *= weight[n][c >> n & 1];
        corner_cell += cell[n][c >> n & 1];
        corner_exists &= exists[n][c >> n & 1];
      }
      store(&chunk.weight[c][i], corner_weight);
      store_offsets(&chunk.offset[c][i], corner_cell, corner_exists, rows);
    }
  }

  static void store_offsets(IntOf<Real>* to, Ints cell, Ints exists, PackedRows<Real> rows) {
    store(to, (exists & (cell * rows.stride)) | (~exists & (Ints{} + rows.outside)));
  }
  static void store_offsets(int64_t* to, Ints cell, Ints exists, StridedRows rows) {
    for (int i = 0; i < W; ++i) to[i] = exists[i] ? cell[i] * rows.stride : rows.outside;
  }

  const Problem& p_;
  const SampleTable<Real, N>& table_;
  const std::unique_ptr<Real[]> attention_;
  const std::unique_ptr<Real[]> reference_;         // [L, N or 2N]
  const Real half_point_ = Real(0.5) / Real(p_.K);  // of a box's size, per point
};

}  // namespace
}  // namespace stdeform
