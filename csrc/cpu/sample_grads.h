// Gradients of positions, scores and reference points, from one dot product per corner: that of
// grad_out with the corner's row. Interpolating these gives the gradient of the attention weight;
// with the weights of one axis replaced by their slopes, that of the pixel coordinate.
#pragma once

#include "cpu/gather.h"

namespace stdeform {
namespace {

template <class Real, int N>
class SampleGrads {
  static constexpr int W = kLanes<Real>;
  static constexpr int kCorners = 1 << N;
  using Reals = Vector<Real>;
  using Ints = IntVector<Real>;

 public:
  // `head_reference` receives the reference points' gradient per head, [B, M, Q, L, N or 2N]; null
  // if it is not requested.
  SampleGrads(const Problem& p, const SampleTable<Real, N>& table, Real* head_reference)
      : p_(p),
        table_(table),
        head_reference_(head_reference),
        grad_attention_(new Real[round_up(table.count, kChunk)]),
        grad_reference_(new Real[p.L * 2 * N * W]) {}

  // Like SampleReader::prefetch, for what a later query of the same head will write.
  void prefetch(int64_t b, int64_t q, int64_t m) const {
    const int64_t first = first_sample(b, q, m);
    prefetch_numbers(p_.grad_positions, first * N, table_.count * N);
    prefetch_numbers(p_.grad_scores, first, table_.count);
  }

  void begin_query() {
    if (head_reference_)
      std::fill(&grad_reference_[0], &grad_reference_[p_.L * 2 * N * W], Real(0));
  }

  // Samples [first, first + chunk.count) of the query.
  void add(int64_t b, int64_t q, int64_t m, int64_t first, const Chunk<Real, N>& chunk,
           const Dots<Real, N>& dots) {
    alignas(64) Real grad_pixel[N][kChunk];  // of the pixel coordinates
    for (int i = 0; i < chunk.count; i += W) {
      struct {
        Reals low_weight, high_weight, low_slope, high_slope;
      } axes[N];
      for (int n = 0; n < N; ++n) {
        axes[n] = {load(&chunk.low_weight[n][i]), load(&chunk.high_weight[n][i]),
                   load(&chunk.low_slope[n][i]), load(&chunk.high_slope[n][i])};
      }
      Reals corners[kCorners], slope[N];
      deinterleave<kCorners>(dots.of + i * kCorners, corners);
      interpolate<N>(axes, corners, slope);
      store(&grad_attention_[first + i], corners[0]);
      for (int n = 0; n < N; ++n) {
        store(&grad_pixel[n][i], load(&chunk.attention[i]) * slope[n]);
      }
    }
    if (p_.grad_positions.data) write_positions(b, q, m, first, chunk, grad_pixel);
    if (head_reference_) add_reference(first, chunk, grad_pixel);
  }

  // After the last chunk. `attention`: the query's attention weights, [P].
  void finish_query(int64_t b, int64_t q, int64_t m, const Real* attention) {
    if (p_.grad_scores.data) {
      if (p_.reference.data) differentiate_softmax(attention);
      write_numbers(p_.grad_scores, first_sample(b, q, m), grad_attention_.get(), table_.count);
    }
    if (head_reference_) {
      const int64_t width = p_.L * table_.reference_width;
      Real* to = head_reference_ + ((b * p_.M + m) * p_.Q + q) * width;
      for (int64_t r = 0; r < width; ++r) to[r] = reduce<W>(load(&grad_reference_[r * W]), plus);
    }
  }

  // Writes `n` numbers from element `at` of a contiguous array.
  static void write_numbers(const Array& to, int64_t at, const Real* from, int64_t n) {
    visit_dtype(to.dtype, [&](auto zero) {
      using T = decltype(zero);
      store_numbers(from, n, static_cast<T*>(to.data) + at);
    });
  }

 private:
  // Of a query and head, in contiguous arrays [B, Q, M, P].
  int64_t first_sample(int64_t b, int64_t q, int64_t m) const {
    return ((b * p_.Q + q) * p_.M + m) * table_.count;
  }

  static void prefetch_numbers(const Array& to, int64_t at, int64_t n) {
    if (!to.data) return;
    visit_dtype(to.dtype, [&](auto zero) {
      stdeform::prefetch<true>(static_cast<decltype(zero)*>(to.data) + at, n);
    });
  }

  void write_positions(int64_t b, int64_t q, int64_t m, int64_t first, const Chunk<Real, N>& chunk,
                       const Real (*grad_pixel)[kChunk]) const {
    alignas(64) Real grad[kChunk * N];
    for (int i = 0; i < chunk.count; ++i)
      for (int n = 0; n < N; ++n) {
        // A coordinate that reads nothing has no gradient, even if its scale is infinite or NaN.
        const Real g = grad_pixel[n][i];
        grad[i * N + n] = g == Real(0) ? Real(0) : g * chunk.scale[n][i];
      }
    const int64_t sample = first_sample(b, q, m) + first;
    write_numbers(p_.grad_positions, sample * N, grad, chunk.count * N);
  }

  void add_reference(int64_t first, const Chunk<Real, N>& chunk, const Real (*grad_pixel)[kChunk]) {
    const int width = table_.reference_width;
    for (int i = 0; i < chunk.count; i += W) {
      const Ints levels = load(&table_.level[first + i]);
      const int64_t last = std::min(first + i + W, table_.count) - 1;
      for (int n = 0; n < N; ++n) {
        const Reals size = to_float(load(&table_.cells[n][first + i]));
        const Reals g = load(&grad_pixel[n][i]);
        const Reals by_centre = g * size;
        // A coordinate that reads nothing may be infinite.
        const Reals by_box = g == Real(0) ? Reals{}
                                          : by_centre * load(&chunk.position[n][i]) *
                                                load(&table_.half_per_point[first + i]);
        for (int64_t l = table_.level[first + i]; l <= table_.level[last]; ++l) {
          const auto is_here =
              (levels == Ints{} + IntOf<Real>(l)) & lanes_below(last + 1 - first - i);
          Real* level = &grad_reference_[l * width * W];
          store(level + n * W, load(level + n * W) + (is_here ? by_centre : Reals{}));
          if (!p_.boxes) continue;
          store(level + (N + n) * W, load(level + (N + n) * W) + (is_here ? by_box : Reals{}));
        }
      }
    }
  }

  // A mask of the first `count` lanes; the others hold no sample.
  static auto lanes_below(int64_t count) {
    Ints lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane < Ints{} + IntOf<Real>(count);
  }

  void differentiate_softmax(const Real* attention) {
    const int64_t padded = round_up(table_.count, W);
    std::fill(&grad_attention_[table_.count], &grad_attention_[padded], Real(0));
    Reals sums = {};
    for (int64_t i = 0; i < padded; i += W) sums += load(attention + i) * load(&grad_attention_[i]);
    const Real sum = reduce<W>(sums, plus);
    for (int64_t i = 0; i < padded; i += W)
      store(&grad_attention_[i], load(attention + i) * (load(&grad_attention_[i]) - sum));
  }

  static constexpr auto plus = [](Reals a, Reals b) { return a + b; };

  const Problem& p_;
  const SampleTable<Real, N>& table_;
  Real* head_reference_;
  // Of the current query and head:
  std::unique_ptr<Real[]> grad_attention_;  // [P], then the gradient of the scores
  std::unique_ptr<Real[]> grad_reference_;  // [L, N or 2N, W], to be summed over the last axis
};

}  // namespace
}  // namespace stdeform
