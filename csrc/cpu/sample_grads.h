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

  void begin_query() {
    if (head_reference_)
      std::fill(&grad_reference_[0], &grad_reference_[p_.L * 2 * N * W], Real(0));
  }

  // One chunk of the query. `positions`, [P, N], receives the gradients of its positions.
  void add(const GradChunk<Real, N>& chunk, const Dots<Real, N>& dots, Real* positions) {
    alignas(64) Real grad_pixel[N][kChunk];  // of the pixel coordinates
    for (int i = 0; i < chunk.count; i += W) {
      struct {
        Reals low_weight, high_weight, low_slope, high_slope;
      } axes[N];
      for (int n = 0; n < N; ++n) {
        axes[n] = {load(&chunk.low_weight[n][i]), load(&chunk.high_weight[n][i]),
                   load(&chunk.low_slope[n][i]), load(&chunk.high_slope[n][i])};
      }
      Reals corners[kCorners], slope[N], grad[N];
      deinterleave<kCorners>(dots.of + i * kCorners, corners);
      interpolate<N>(axes, corners, slope);
      store(&grad_attention_[chunk.first + i], corners[0]);
      for (int n = 0; n < N; ++n) {
        const Reals by_pixel = load(&chunk.attention[i]) * slope[n];
        store(&grad_pixel[n][i], by_pixel);
        // A coordinate that reads nothing has no gradient, even if its scale is infinite or NaN.
        grad[n] = by_pixel == Reals{} ? Reals{} : by_pixel * load(&chunk.scale[n][i]);
      }
      interleave<N>(grad, positions + (chunk.first + i) * N);
    }
    if (head_reference_) add_reference(chunk, grad_pixel);
  }

  // After the last chunk. The query's attention weights, [P], become the gradients of its scores.
  void finish_query(int64_t b, int64_t q, int64_t m, Real* attention) {
    if (p_.reference.data) differentiate_softmax(attention);
    std::copy_n(grad_attention_.get(), table_.count, attention);
    if (head_reference_) {
      const int64_t width = p_.L * table_.reference_width;
      Real* to = head_reference_ + ((b * p_.M + m) * p_.Q + q) * width;
      for (int64_t r = 0; r < width; ++r) to[r] = reduce<W>(load(&grad_reference_[r * W]), plus);
    }
  }

 private:
  void add_reference(const GradChunk<Real, N>& chunk, const Real (*grad_pixel)[kChunk]) {
    const int64_t first = chunk.first;
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
