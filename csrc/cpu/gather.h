// The inner loops: rows of channels read, weighted, dotted and accumulated, vector by vector.
//
// A row of `vectors` vectors is worked on in blocks that fit the registers; every head_dim is a
// sum of such blocks, so the usual ones (16, 32, 48, 64, 96, 128) and all others take one path.
#pragma once

#include "cpu/sample_reader.h"

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

// sum += sum over samples and corners of weight * row, for one block of channels.
template <int width, class T, class Real, int N, class Rows>
STDEFORM_INLINE void gather_block(const T* rows, const Chunk<Real, N, Rows>& chunk, Real* sum) {
  constexpr int W = kLanes<Real>;
  constexpr int kCorners = 1 << N;
  // Several sums per channel, so that no addition waits for the one just before it.
  constexpr int kSums = width <= 3 ? 4 : (width <= 6 ? 2 : 1);
  Vector<Real> sums[kSums][width] = {};
  for (int i = 0; i < chunk.count; ++i) {
#pragma GCC unroll 8
    for (int c = 0; c < kCorners; ++c) {
      const T* row = rows + int64_t(chunk.offset[c][i]) * Rows::unit;
      const Real weight = chunk.weight[c][i];
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) sums[c % kSums][v] += weight * load(row + v * W);
    }
  }
  for (int v = 0; v < width; ++v) {
    Vector<Real> total = load(sum + v * W);
    for (int s = 0; s < kSums; ++s) total += sums[s][v];
    store(sum + v * W, total);
  }
}

template <class T, class Real, int N, class Rows>
STDEFORM_INLINE void gather(const T* rows, int64_t vectors, const Chunk<Real, N, Rows>& chunk,
                            Real* sum) {
  for_each_block(vectors, [&](auto width, int64_t first) {
    const int64_t channel = first * kLanes<Real>;
    gather_block<width>(rows + channel, chunk, sum + channel);
  });
}

// Dot products of a row of grad_out with every corner's row, [sample][corner].
template <class Real, int N>
struct Dots {
  // Lane sums are written a vector at a time, past the last sample too.
  alignas(64) Real of[(kChunk << N) + kLanes<Real>];
};

// Which rows of the value's gradient the caller owns, as offsets [begin, end).
struct RowRange {
  int64_t begin, end;
};

// What a pass over the samples does: dots (dots = row of grad_out with rows of the value), and
// scatter (rows of the value's gradient += weight * row of grad_out) to all rows or to a range.
// Rows are added to in the order of samples and corners, whatever else the pass does.
enum class Scatter { none, all, range };

template <int width, bool wants_dots, Scatter to, class T, class Real, int N, class Rows>
STDEFORM_INLINE void differentiate_block(const T* rows, Real* grad_rows, const Real* grad_out,
                                         const Chunk<Real, N, Rows>& chunk, RowRange range,
                                         bool first, Dots<Real, N>& dots) {
  constexpr int W = kLanes<Real>;
  constexpr int kCorners = 1 << N;
  Vector<Real> grad[width];
  for (int v = 0; v < width; ++v) grad[v] = load(grad_out + v * W);
  for (int i = 0; i < chunk.count; ++i) {
    Vector<Real> products[kCorners];
#pragma GCC unroll 8
    for (int c = 0; c < kCorners; ++c) {
      const int64_t offset = chunk.offset[c][i];
      if constexpr (wants_dots) {
        const T* row = rows + offset * Rows::unit;
        products[c] = grad[0] * load(row);
#pragma GCC unroll 8
        for (int v = 1; v < width; ++v) products[c] += grad[v] * load(row + v * W);
      }
      if (to == Scatter::all ||
          (to == Scatter::range && offset >= range.begin && offset < range.end)) {
        Real* row = grad_rows + offset * Rows::unit;
        const Real weight = chunk.weight[c][i];
#pragma GCC unroll 8
        for (int v = 0; v < width; ++v) store(row + v * W, load(row + v * W) + weight * grad[v]);
      }
    }
    if constexpr (wants_dots) {
      if (first) {
        store_lane_sums<Real, kCorners>(products, dots.of + i * kCorners);
      } else {
        alignas(64) Real sums[kCorners + W];
        store_lane_sums<Real, kCorners>(products, sums);
        for (int c = 0; c < kCorners; ++c) dots.of[i * kCorners + c] += sums[c];
      }
    }
  }
}

template <bool wants_dots, Scatter to, class T, class Real, int N, class Rows>
inline void differentiate(const T* rows, Real* grad_rows, int64_t vectors, const Real* grad_out,
                          const Chunk<Real, N, Rows>& chunk, RowRange range, Dots<Real, N>& dots) {
  for_each_block(vectors, [&](auto width, int64_t first) {
    const int64_t channel = first * kLanes<Real>;
    differentiate_block<width, wants_dots, to>(rows + channel, grad_rows + channel,
                                               grad_out + channel, chunk, range, first == 0, dots);
  });
}

}  // namespace
}  // namespace stdeform
