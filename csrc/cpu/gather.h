// The inner loops over samples, corners and channels: gather for the forward, dots and scatter for
// the backward.
//
// A row, the D channels of one cell, is processed in blocks of a few vectors, which fit the
// registers. Every head_dim is a sum of such blocks, the usual ones (16, 32, 48, 64, 96, 128) and
// all others.
#pragma once

#include "cpu/corners.h"

namespace stdeform {
namespace {

// Calls f(std::integral_constant<int, width>, first vector) for each block of a row.
template <class F>
STDEFORM_INLINE void for_each_block(int64_t vectors, F f) {
  int64_t first = 0;
  while (first < vectors) {
    const int64_t left = vectors - first;
    if (left >= 8) {
      f(std::integral_constant<int, 8>{}, first), first += 8;
    } else if (left >= 6) {
      f(std::integral_constant<int, 6>{}, first), first += 6;
    } else if (left >= 4) {
      f(std::integral_constant<int, 4>{}, first), first += 4;
    } else if (left == 3) {
      f(std::integral_constant<int, 3>{}, first), first += 3;
    } else if (left == 2) {
      f(std::integral_constant<int, 2>{}, first), first += 2;
    } else {
      f(std::integral_constant<int, 1>{}, first), first += 1;
    }
  }
}

// sum += weight * row over samples and corners, for one block of channels.
template <int width, class T, class Real, int N, class Rows>
STDEFORM_INLINE void gather_block(const T* value, Rows rows, const Chunk<Real, N>& chunk,
                                  Real* sum) {
  constexpr int W = kLanes<Real>;
  constexpr int kCorners = 1 << N;
  // Several sums per channel, so that an addition does not wait for the one before it.
  constexpr int kSums = width <= 3 ? 4 : (width <= 6 ? 2 : 1);
  Vector<Real> sums[kSums][width] = {};
  for (int j = 0; j < chunk.num_live; ++j) {
    const int i = chunk.live[j];
#pragma GCC unroll 4
    for (int c = 0; c < kCorners; c += 2) {
      const T* low = rows.find(value, rows.offset(chunk, c, i));
      const T* high = rows.find(value, rows.offset(chunk, c + 1, i));
      const Real low_weight = chunk.weight[c][i], high_weight = chunk.weight[c + 1][i];
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) {
        const auto pair = load_pair(low + v * W, high + v * W);
        sums[c % kSums][v] += low_weight * pair.first;
        sums[(c + 1) % kSums][v] += high_weight * pair.second;
      }
    }
  }
  for (int v = 0; v < width; ++v) {
    Vector<Real> total = load(sum + v * W);
    for (int s = 0; s < kSums; ++s) total += sums[s][v];
    store(sum + v * W, total);
  }
}

template <class T, class Real, int N, class Rows>
STDEFORM_INLINE void gather(const T* value, int64_t vectors, Rows rows, const Chunk<Real, N>& chunk,
                            Real* sum) {
  for_each_block(vectors, [&](auto width, int64_t first) {
    const int64_t channel = first * kLanes<Real>;
    gather_block<width>(value + channel, rows, chunk, sum + channel);
  });
}

// Dot products of grad_out with the row of each corner, [sample][corner].
template <class Real, int N>
struct Dots {
  // Padded: lane sums are written a vector at a time, also past the last sample.
  alignas(64) Real of[(kChunk << N) + kLanes<Real>];

  // Samples that read nothing keep this number.
  void fill(const Chunk<Real, N>& chunk, Real number) {
    if (chunk.num_live < chunk.count)
      std::fill_n(of, round_up(chunk.count, kLanes<Real>) << N, number);
  }
};

// The packed rows of the value's gradient that the caller may add to, as offsets [begin, end).
struct RowRange {
  int64_t begin, end;
};

// A pass over the samples computes the dots, or scatters (gradient row += weight * grad_out) to all
// rows or to a range of them, or both. A row is added to in the order of samples and corners, for
// any combination.
enum class Scatter { none, all, range };
template <Scatter scatter>
using ScatterConstant = std::integral_constant<Scatter, scatter>;

constexpr int kSamplesAhead = 4;  // how early the rows of a sample are prefetched

// `grad_out`, [D], and the rows are those of one block of channels.
template <int width, bool with_dots, Scatter scatter, class T, class Real, int N, class ValueRows,
          class GradRows>
STDEFORM_INLINE void differentiate_block(const T* value, ValueRows value_rows, Real* grad_value,
                                         GradRows grad_rows, const Real* grad_out,
                                         const Chunk<Real, N>& chunk, RowRange range,
                                         bool is_first_block, Dots<Real, N>& dots) {
  constexpr int W = kLanes<Real>;
  constexpr int kCorners = 1 << N;
  Vector<Real> grad[width];
  for (int v = 0; v < width; ++v) grad[v] = load(grad_out + v * W);
  for (int j = 0; j < chunk.num_live; ++j) {
    const int i = chunk.live[j],
              ahead = chunk.live[std::min(j + kSamplesAhead, chunk.num_live - 1)];
    Vector<Real> products[kCorners];
#pragma GCC unroll 8
    for (int c = 0; c < kCorners; ++c) {
      if constexpr (with_dots) {
        value_rows.template prefetch<false>(value, value_rows.offset(chunk, c, ahead), width * W);
        const T* row = value_rows.find(value, value_rows.offset(chunk, c, i));
        products[c] = grad[0] * load(row);
#pragma GCC unroll 8
        for (int v = 1; v < width; ++v) products[c] += grad[v] * load(row + v * W);
      }
      if constexpr (scatter != Scatter::none) {
        const int64_t offset = grad_rows.offset(chunk, c, i);
        if (scatter == Scatter::range && (offset < range.begin || offset >= range.end)) continue;
        grad_rows.template prefetch<true>(grad_value, grad_rows.offset(chunk, c, ahead), width * W);
        Real* row = grad_rows.find(grad_value, offset);
        const Real weight = chunk.weight[c][i];
#pragma GCC unroll 8
        for (int v = 0; v < width; ++v) store(row + v * W, load(row + v * W) + weight * grad[v]);
      }
    }
    if constexpr (with_dots) {
      alignas(64) Real sums[kCorners + W];
      store_lane_sums<Real, kCorners>(products, sums);
      // As vectors: number by number, GCC takes them from the register one after another.
      constexpr int kPart = std::min(kCorners, W);
      typedef Real Part __attribute__((vector_size(kPart * sizeof(Real))));
      for (int c = 0; c < kCorners; c += kPart) {
        Real* to = dots.of + i * kCorners + c;
        Part part = load_bits<Part>(sums + c);
        if (!is_first_block) part += load_bits<Part>(to);
        std::memcpy(to, &part, sizeof part);
      }
    }
  }
}

template <bool with_dots, Scatter scatter, class T, class Real, int N, class ValueRows,
          class GradRows>
inline void differentiate(const T* value, ValueRows value_rows, Real* grad_value,
                          GradRows grad_rows, int64_t vectors, const Real* grad_out,
                          const Chunk<Real, N>& chunk, RowRange range, Dots<Real, N>& dots) {
  for_each_block(vectors, [&](auto width, int64_t first) {
    const int64_t channel = first * kLanes<Real>;
    differentiate_block<width, with_dots, scatter>(
        value + channel, value_rows, grad_value + channel, grad_rows, grad_out + channel, chunk,
        range, first == 0, dots);
  });
}

}  // namespace
}  // namespace stdeform
