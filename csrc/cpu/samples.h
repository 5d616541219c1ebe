// From what the caller passes for one query and head to where its samples read and how much.
//
// Samples of a head are numbered i = l * K + k. They are worked on in chunks, as structures of
// arrays, a vector of samples at a time.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "../problem.h"
#include "softmax.h"
// After simd.h, whose truncate and to_float for vectors its templates must see.
#include "../sampling.h"

namespace stdeform {
namespace {

constexpr int kChunk = 64;  // samples; a multiple of every level's lanes

// Calls f with a typed null pointer that stands for the dtype.
template <class F>
inline void visit_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f64: return f(static_cast<double*>(nullptr));
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f16: return f(static_cast<Half*>(nullptr));
    case DType::bf16: return f(static_cast<BFloat16*>(nullptr));
  }
}

// What is the same for every query: the level of each sample. Axes count from x.
template <class Real, int N>
class SampleTable {
  using Int = IntOf<Real>;

 public:
  explicit SampleTable(const Problem& p) : count(p.L * p.K), first_cell(padded()) {
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
      for (int64_t i = l * p.K; i < (l + 1) * p.K; ++i) first_cell[i] = Int(first);
      first += level_cells;
    }
  }

  int64_t count;                         // L * K
  std::unique_ptr<Int[]> cells[N];       // of the sample's level along the axis
  std::unique_ptr<Int[]> cell_stride[N]; // cells between neighbours along the axis
  std::unique_ptr<Int[]> first_cell;     // of the level, in 0..S

 private:
  std::unique_ptr<Int[]> padded() const {
    return std::unique_ptr<Int[]>(new Int[round_up(count, kChunk)]());
  }
};

// How a cell's row of channels is found: at cell * stride, and a row of zeros at `outside` for a
// corner that does not exist. Offsets count elements.
template <class Offset>
struct RowLayout {
  Offset stride;
  Offset outside;
};

// Do offsets into a packed slice fit the integers that go with Real?
template <class Real>
inline bool offsets_fit(const Problem& p) {
  return double(p.S + 1) * double(round_up(p.D, kLanes<Real>)) <=
         double(std::numeric_limits<IntOf<Real>>::max());
}

// One chunk of the samples of a query and head.
template <class Real, int N, class Offset>
struct Chunk {
  static constexpr int kCorners = 1 << N;  // bit n of a corner: the higher cell along axis n
  int count;
  alignas(64) Offset offset[kCorners][kChunk];  // of the corner's row
  alignas(64) Real weight[kCorners][kChunk];    // interpolation weight times attention
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
      : p_(p), table_(table), attention_(new Real[round_up(table.count, kChunk)]()) {}

  // Attention weights of all samples of a query: softmaxed here if scores are logits.
  const Real* attend(int64_t b, int64_t q, int64_t m) {
    visit_dtype(p_.scores.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const int64_t* s = p_.scores.stride;
      const T* from = static_cast<const T*>(p_.scores.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[4] == 1 && (s[3] == p_.K || p_.L == 1)) {
        for (int64_t i = 0; i < table_.count; ++i) attention_[i] = Real(to_real(from[i]));
      } else {
        for (int64_t l = 0, i = 0; l < p_.L; ++l)
          for (int64_t k = 0; k < p_.K; ++k, ++i)
            attention_[i] = Real(to_real(from[l * s[3] + k * s[4]]));
      }
    });
    if (p_.reference.data) softmax(attention_.get(), table_.count);
    return attention_.get();
  }

  // Samples [first, first + chunk.count) of the query whose attention was read last.
  template <class Offset>
  void read(int64_t b, int64_t q, int64_t m, int64_t first, RowLayout<Offset> rows,
            Chunk<Real, N, Offset>& chunk) const {
    chunk.count = int(table_.count - first < kChunk ? table_.count - first : kChunk);
    read_positions(b, q, m, first, chunk);
    alignas(64) Real shift[N][kChunk];
    scale_and_shift(b, q, first, chunk, shift);
    for (int i = 0; i < chunk.count; i += W) find_corners(first, i, rows, shift, chunk);
  }

 private:
  template <class Offset>
  void read_positions(int64_t b, int64_t q, int64_t m, int64_t first,
                      Chunk<Real, N, Offset>& chunk) const {
    visit_dtype(p_.positions.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const int64_t* s = p_.positions.stride;
      const T* from = static_cast<const T*>(p_.positions.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[5] == 1 && s[4] == N && (s[3] == p_.K * N || p_.L == 1)) {
        from += first * N;
        for (int i = 0; i < chunk.count; ++i)
          for (int n = 0; n < N; ++n) chunk.position[n][i] = Real(to_real(from[i * N + n]));
      } else {
        for (int i = 0; i < chunk.count; ++i) {
          const T* point = from + (first + i) / p_.K * s[3] + (first + i) % p_.K * s[4];
          for (int n = 0; n < N; ++n) chunk.position[n][i] = Real(to_real(point[n * s[5]]));
        }
      }
    });
  }

  // What turns positions into pixel coordinates, pixel = position * scale + shift:
  //   locations  location * size - 0.5
  //   points     offset + (reference * size - 0.5)
  //   boxes      offset * (box * size / 2K) + (centre * size - 0.5)
  template <class Offset>
  void scale_and_shift(int64_t b, int64_t q, int64_t first, Chunk<Real, N, Offset>& chunk,
                       Real (*shift)[kChunk]) const {
    if (!p_.reference.data) {
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < chunk.count; i += W) {
          store(&chunk.scale[n][i], to_float(load(&table_.cells[n][first + i])));
          store(&shift[n][i], Reals{} - Real(0.5));
        }
      return;
    }
    for (int i = 0, end; i < chunk.count; i = end) {
      const int64_t l = (first + i) / p_.K;
      end = int(std::min<int64_t>((l + 1) * p_.K - first, chunk.count));
      for (int n = 0; n < N; ++n) {
        const Real size = Real(table_.cells[n][first + i]);
        const Real level_shift = reference(b, q, l, n) * size - Real(0.5);
        const Real level_scale =
            p_.boxes ? reference(b, q, l, N + n) * (size * (Real(0.5) / Real(p_.K))) : Real(1);
        for (int j = i; j < end; ++j) {
          shift[n][j] = level_shift;
          chunk.scale[n][j] = level_scale;
        }
      }
    }
  }

  // The corners of one vector of samples, from sample i of the chunk.
  template <class Offset>
  void find_corners(int64_t first, int i, RowLayout<Offset> rows, const Real (*shift)[kChunk],
                    Chunk<Real, N, Offset>& chunk) const {
    Ints cell[N][2], exists[N][2];
    Reals weight[N][2];
    for (int n = 0; n < N; ++n) {
      const Reals pixel =
          load(&chunk.position[n][i]) * load(&chunk.scale[n][i]) + load(&shift[n][i]);
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

  static void store_offsets(IntOf<Real>* to, Ints cell, Ints exists,
                            RowLayout<IntOf<Real>> rows) {
    store(to, exists ? cell * rows.stride : Ints{} + rows.outside);
  }
  template <class Offset>
  static void store_offsets(Offset* to, Ints cell, Ints exists, RowLayout<Offset> rows) {
    for (int i = 0; i < W; ++i) to[i] = exists[i] ? cell[i] * rows.stride : rows.outside;
  }

  Real reference(int64_t b, int64_t q, int64_t l, int64_t r) const {
    const int64_t* s = p_.reference.stride;
    Real x = 0;
    visit_dtype(p_.reference.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* from = static_cast<const T*>(p_.reference.data);
      x = Real(to_real(from[b * s[0] + q * s[1] + l * s[2] + r * s[3]]));
    });
    return x;
  }

  const Problem& p_;
  const SampleTable<Real, N>& table_;
  const std::unique_ptr<Real[]> attention_;
};

}  // namespace
}  // namespace stdeform
