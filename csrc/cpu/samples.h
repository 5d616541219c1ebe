// From what the caller passes for one query and head to where its samples read and how much.
//
// Samples of a head are numbered i = l * K + k. They are worked on in chunks, as structures of
// arrays, so that the compiler vectorises over samples.
#pragma once

#include <memory>

#include "../problem.h"
#include "../sampling.h"
#include "softmax.h"

namespace stdeform {
namespace {

constexpr int kChunk = 64;

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

inline double narrow(double x, double*) { return x; }
inline float narrow(double x, float*) { return float(x); }

// What is the same for every query: the level of each sample. Axes count from x.
template <class Real, int N>
struct SampleTable {
  int64_t count;  // L * K
  std::unique_ptr<int32_t[]> size[N];         // cells of the sample's level along the axis
  std::unique_ptr<int32_t[]> cell_stride[N];  // cells between neighbours along the axis
  std::unique_ptr<int64_t[]> first_cell;      // of the level, in 0..S

  explicit SampleTable(const Problem& p) : count(p.L * p.K), first_cell(new int64_t[count]) {
    for (int n = 0; n < N; ++n) {
      size[n].reset(new int32_t[count]);
      cell_stride[n].reset(new int32_t[count]);
    }
    int64_t first = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      int64_t cells = 1;
      for (int n = 0; n < N; ++n) {
        const int64_t axis_size = p.spatial_shapes[l * N + N - 1 - n];
        for (int64_t k = 0; k < p.K; ++k) {
          size[n][l * p.K + k] = int32_t(axis_size);
          cell_stride[n][l * p.K + k] = int32_t(cells);
        }
        cells *= axis_size;
      }
      for (int64_t k = 0; k < p.K; ++k) first_cell[l * p.K + k] = first;
      first += cells;
    }
  }
};

// How a cell's row of channels is found: base + cell * stride, or a row of zeros for a corner
// that does not exist. Offsets count elements.
struct RowLayout {
  int64_t stride;
  int64_t outside;
};

// One chunk of the samples of a query and head.
template <class Real, int N>
struct Chunk {
  static constexpr int kCorners = 1 << N;  // bit n of a corner: the higher cell along axis n
  int count;
  alignas(64) int64_t offset[kCorners][kChunk];  // of the corner's row
  alignas(64) Real weight[kCorners][kChunk];     // interpolation weight times attention
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
 public:
  SampleReader(const Problem& p, const SampleTable<Real, N>& table)
      : p_(p),
        table_(table),
        attention_(new Real[round_up(table.count, kLanes<Real>) + kChunk]) {}

  int64_t count() const { return table_.count; }

  // Attention weights of all samples of a query: softmaxed here if scores are logits.
  const Real* attend(int64_t b, int64_t q, int64_t m) {
    visit_dtype(p_.scores.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const int64_t* s = p_.scores.stride;
      const T* from = static_cast<const T*>(p_.scores.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[4] == 1 && (s[3] == p_.K || p_.L == 1)) {
        for (int64_t i = 0; i < count(); ++i) attention_[i] = narrow(to_real(from[i]), zero_);
      } else {
        for (int64_t l = 0, i = 0; l < p_.L; ++l)
          for (int64_t k = 0; k < p_.K; ++k, ++i)
            attention_[i] = narrow(to_real(from[l * s[3] + k * s[4]]), zero_);
      }
    });
    if (p_.reference.data) softmax(attention_.get(), count());
    return attention_.get();
  }

  // Samples [first, first + chunk.count) of the query whose attention was read last.
  void read(int64_t b, int64_t q, int64_t m, int64_t first, RowLayout rows,
            Chunk<Real, N>& chunk) const {
    chunk.count = int(count() - first < kChunk ? count() - first : kChunk);
    read_positions(b, q, m, first, chunk);
    for (int i = 0; i < chunk.count; ++i) chunk.attention[i] = attention_[first + i];
    locate(b, q, first, rows, chunk);
  }

 private:
  void read_positions(int64_t b, int64_t q, int64_t m, int64_t first,
                      Chunk<Real, N>& chunk) const {
    visit_dtype(p_.positions.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const int64_t* s = p_.positions.stride;
      const T* from = static_cast<const T*>(p_.positions.data) + b * s[0] + q * s[1] + m * s[2];
      if (s[5] == 1 && s[4] == N && (s[3] == p_.K * N || p_.L == 1)) {
        from += first * N;
        for (int i = 0; i < chunk.count; ++i)
          for (int n = 0; n < N; ++n)
            chunk.position[n][i] = narrow(to_real(from[i * N + n]), zero_);
      } else {
        for (int i = 0; i < chunk.count; ++i) {
          const T* point = from + (first + i) / p_.K * s[3] + (first + i) % p_.K * s[4];
          for (int n = 0; n < N; ++n)
            chunk.position[n][i] = narrow(to_real(point[n * s[5]]), zero_);
        }
      }
    });
  }

  // pixel = position * scale + shift; without reference points pixel = location * size - 0.5.
  void locate(int64_t b, int64_t q, int64_t first, RowLayout rows, Chunk<Real, N>& chunk) const {
    alignas(64) Real shift[N][kChunk];
    if (p_.reference.data) {
      refer(b, q, first, chunk, shift);
    } else {
      for (int n = 0; n < N; ++n) {
        const int32_t* size = table_.size[n].get() + first;
        for (int i = 0; i < chunk.count; ++i) {
          chunk.scale[n][i] = Real(size[i]);
          shift[n][i] = Real(-0.5);
        }
      }
    }
    alignas(64) int32_t low_cell[N][kChunk], high_cell[N][kChunk];
    alignas(64) int32_t has_low[N][kChunk], has_high[N][kChunk];
    for (int n = 0; n < N; ++n) {
      const int32_t* size = table_.size[n].get() + first;
      const int32_t* cell_stride = table_.cell_stride[n].get() + first;
      for (int i = 0; i < chunk.count; ++i) {
        const Real pixel = chunk.position[n][i] * chunk.scale[n][i] + shift[n][i];
        const AxisSample<Real> s = sample_axis(pixel, size[i]);
        low_cell[n][i] = s.low * cell_stride[i];
        high_cell[n][i] = s.high * cell_stride[i];
        has_low[n][i] = s.has_low;
        has_high[n][i] = s.has_high;
        chunk.low_weight[n][i] = s.low_weight;
        chunk.high_weight[n][i] = s.high_weight;
        chunk.low_slope[n][i] = s.low_slope;
        chunk.high_slope[n][i] = s.high_slope;
      }
    }
    const int64_t* first_cell = table_.first_cell.get() + first;
    for (int c = 0; c < Chunk<Real, N>::kCorners; ++c) {
      for (int i = 0; i < chunk.count; ++i) {
        Real weight = chunk.attention[i];
        int32_t cell = 0, exists = 1;
        for (int n = 0; n < N; ++n) {
          const bool high = c >> n & 1;
          weight *= high ? chunk.high_weight[n][i] : chunk.low_weight[n][i];
          cell += high ? high_cell[n][i] : low_cell[n][i];
          exists &= high ? has_high[n][i] : has_low[n][i];
        }
        const int64_t offset = (first_cell[i] + cell) * rows.stride;
        chunk.offset[c][i] = exists ? offset : rows.outside;
        chunk.weight[c][i] = exists ? weight : Real(0);
      }
    }
  }

  // Points: pixel = reference * size + offset - 0.5.
  // Boxes: pixel = centre * size + offset * (box * size / 2K) - 0.5.
  void refer(int64_t b, int64_t q, int64_t first, Chunk<Real, N>& chunk,
             Real (*shift)[kChunk]) const {
    for (int i = 0; i < chunk.count;) {
      const int64_t l = (first + i) / p_.K;
      const int64_t end = (l + 1) * p_.K - first;
      const int stop = end < chunk.count ? int(end) : chunk.count;
      for (int n = 0; n < N; ++n) {
        const Real size = Real(table_.size[n][first + i]);
        const Real level_shift = reference(b, q, l, n) * size - Real(0.5);
        const Real level_scale =
            p_.boxes ? reference(b, q, l, N + n) * (size * (Real(0.5) / Real(p_.K))) : Real(1);
        for (int j = i; j < stop; ++j) {
          shift[n][j] = level_shift;
          chunk.scale[n][j] = level_scale;
        }
      }
      i = stop;
    }
  }

  Real reference(int64_t b, int64_t q, int64_t l, int64_t r) const {
    const int64_t* s = p_.reference.stride;
    Real x = 0;
    visit_dtype(p_.reference.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* from = static_cast<const T*>(p_.reference.data);
      x = narrow(to_real(from[b * s[0] + q * s[1] + l * s[2] + r * s[3]]), zero_);
    });
    return x;
  }

  static constexpr Real* zero_ = nullptr;  // names the type to narrow to
  const Problem& p_;
  const SampleTable<Real, N>& table_;
  std::unique_ptr<Real[]> attention_;
};

}  // namespace
}  // namespace stdeform
