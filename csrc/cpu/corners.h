// From positions to corners: where the 2^N rows of each sample are, and with which weights they are
// read. One vector of samples per step. The length of a vector is W.
#pragma once

#include "cpu/query_block.h"
#include "cpu/rows.h"
// After simd.h: its templates must see the truncate and to_float for vectors that simd.h declares.
#include "core/sampling.h"

namespace stdeform {
namespace {

// Some samples of a query and head, as structures of arrays.
template <class Real, int N>
struct Chunk {
  static constexpr int kCorners = 1 << N;  // bit n of a corner: the higher cell along axis n
  int64_t first;                           // number of the first sample
  int count;
  bool is_last;  // of the query and head
  // The samples that read anything: those with a corner inside the volume, or with an attention
  // weight that is infinite or NaN.
  int num_live;
  int live[kChunk + kLanes<Real>];                   // padded: written a vector at a time
  alignas(64) IntOf<Real> offset[kCorners][kChunk];  // of the corner's row; see rows.h
  alignas(64) Real weight[kCorners][kChunk];         // interpolation weight * attention weight
};

// With what the backward needs besides.
template <class Real, int N>
struct GradChunk : Chunk<Real, N> {
  alignas(64) Real attention[kChunk];
  alignas(64) Real position[N][kChunk];  // as passed: see core/problem.h
  alignas(64) Real scale[N][kChunk];     // derivative of the pixel coordinate by the position
  alignas(64) Real low_weight[N][kChunk], high_weight[N][kChunk];
  alignas(64) Real low_slope[N][kChunk], high_slope[N][kChunk];
};

template <class Real, int N>
class CornerFinder {
  static constexpr int W = kLanes<Real>;
  using Reals = Vector<Real>;
  using Ints = IntVector<Real>;

 public:
  CornerFinder(const Problem& p, const SampleTable<Real, N>& table) : p_(p), table_(table) {}

  // Calls f(query and head, chunk) for all chunks of `count` queries and heads, `place`(0) and so
  // on.
  template <class Rows, class ChunkType, class Place, class F>
  STDEFORM_INLINE void for_each_chunk(const QueryBlock<Real, N>& block, int64_t count, Place place,
                                      Rows rows, ChunkType& chunk, F f) const {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t first = 0; first < table_.count; first += kChunk) {
        find_chunk(block, place(i), first, rows, chunk);
        f(place(i), chunk);
      }
  }

 private:
  template <class Rows, class ChunkType>
  STDEFORM_INLINE void find_chunk(const QueryBlock<Real, N>& block, QueryHead at, int64_t first,
                                  Rows rows, ChunkType& chunk) const {
    const Real* attention = block.attention(at) + first;
    const Real* positions = block.positions(at) + first * N;
    const Real* reference = block.reference(at.q);
    chunk.first = first;
    chunk.count = int(std::min<int64_t>(table_.count - first, kChunk));
    chunk.is_last = first + chunk.count == table_.count;
    chunk.num_live = 0;
    for (int i = 0; i < chunk.count; i += W) {
      find(attention + i, positions + i * N, reference, i, rows, chunk);
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
#pragma GCC unroll 3
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

  // The corners of W samples, from sample i of the chunk.
  template <class Rows, class ChunkType>
  STDEFORM_INLINE void find(const Real* attentions, const Real* positions, const Real* reference,
                            int i, Rows rows, ChunkType& chunk) const {
    constexpr bool has_slopes = std::is_same_v<ChunkType, GradChunk<Real, N>>;
    const int64_t sample = chunk.first + i;
    Ints cell[N][2], is_inside[N][2];
    Reals weight[N][2], scale[N], shift[N], position[N];
    scale_and_shift(reference, sample, scale, shift);
    deinterleave<N>(positions, position);
    const Reals attention = load(attentions);
    Ints is_live = ~Ints{};
    for (int n = 0; n < N; ++n) {
      const Ints cells = load(&table_.cells[n][sample]);
      const Ints stride = load(&table_.cell_stride[n][sample]);
      const auto s = sample_axis(position[n] * scale[n] + shift[n], to_float(cells), cells);
      cell[n][0] = s.low * stride, cell[n][1] = s.high * stride;
      is_inside[n][0] = s.has_low, is_inside[n][1] = s.has_high;
      weight[n][0] = s.low_weight, weight[n][1] = s.high_weight;
      is_live &= Ints(s.has_any);
      if constexpr (has_slopes) {
        store(&chunk.position[n][i], position[n]);
        store(&chunk.scale[n][i], scale[n]);
        store(&chunk.low_weight[n][i], s.low_weight);
        store(&chunk.high_weight[n][i], s.high_weight);
        store(&chunk.low_slope[n][i], s.low_slope);
        store(&chunk.high_slope[n][i], s.high_slope);
      }
    }
    if constexpr (has_slopes) store(&chunk.attention[i], attention);
    if constexpr (Rows::kNeighbours) {  // one offset for both corners along x
      cell[0][0] += ~is_inside[0][0] & -load(&table_.cell_stride[0][sample]);
      is_inside[0][0] |= is_inside[0][1];
    }
    const Ints first_cell = load(&table_.first_cell[sample]);
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
      if (Rows::kNeighbours && (c & 1)) continue;
      store(&chunk.offset[c][i], rows.offsets(c, corner_cell, corner_is_inside));
    }
    is_live |= Ints(attention - attention != Reals{});
    chunk.num_live += list_lanes(is_live, i, chunk.count - i, chunk.live + chunk.num_live);
  }

  const Problem& p_;
  const SampleTable<Real, N>& table_;
};

}  // namespace
}  // namespace stdeform
