// Whether the backward works by bins, in which chunks, and with how much memory. Host code, no CUDA
// headers.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/binned/bins.h"

namespace stdeform::cuda {

// Samples per bin from which on the backward works by bins. Reasoned, not measured: sorting and the
// sums of a bin should cost about as much memory traffic as this many samples in the direct
// backward.
constexpr int64_t kSamplesPerBin = 4;
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;  // at most, unless one head needs more
constexpr int64_t kSamplesPerWarp = 128;

class BinPlan {
 public:
  BinPlan() = default;  // not in use

  // Of a problem of at most kMaxLevels levels. Throws std::invalid_argument if the order of sums
  // must be fixed and bins cannot do that.
  BinPlan(const Problem& p, const Tuning& tuning) {
    if (!p.grad_value.data) return;  // nothing is summed in memory
    samples_ = p.Q * p.P;
    int64_t bins = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      bins_.first[l] = uint32_t(bins);
      int64_t of_level = 1;
      for (int n = 0; n < p.N; ++n) of_level *= p.spatial_shapes[l * p.N + n] + 1;
      bins += of_level;
    }
    const bool is_possible = std::max(samples_, bins) <= kMaxIndex;
    if (p.deterministic && !is_possible) {
      throw std::invalid_argument(
          "deterministic algorithms take up to 2^31 samples and bins per batch element and head on "
          "CUDA, got " +
          std::to_string(samples_) + " and " + std::to_string(bins));
    }
    const int64_t threshold = tuning.samples_per_bin >= 0 ? tuning.samples_per_bin : kSamplesPerBin;
    const bool is_profitable = samples_ >= threshold * bins;
    const bool is_requested = tuning.backward_bins >= 0 ? tuning.backward_bins != 0 : is_profitable;
    in_use_ = p.deterministic || (is_possible && is_requested);
    if (!in_use_) return;

    bins_.per_head = uint32_t(bins);
    bins_.samples_per_warp =
        int32_t(tuning.samples_per_warp > 0 ? tuning.samples_per_warp : kSamplesPerWarp);
    bins_.by_P = Divisor(uint32_t(p.P));
    bins_.by_Q = Divisor(uint32_t(p.Q));
    bins_.by_M = Divisor(uint32_t(p.M));
    const bool f64 = p.value.dtype == DType::f64;
    const int64_t real_size = f64 ? 8 : 4;
    const int64_t record_bytes = f64 ? sizeof(BinRecord<double>) : sizeof(BinRecord<float>);
    bins_.record_size = int32_t(record_bytes / 16);
    softmax_bytes_ = p.reference.data ? p.Q * 2 * real_size : 0;
    // Needed, and grad_positions cannot hold them until they are final.
    const bool is_buffered =
        (p.grad_positions.data || p.grad_reference.data) &&
        !(p.grad_positions.data && size_of(p.grad_positions.dtype) == real_size);
    pixel_grad_bytes_ = is_buffered ? p.N * real_size : 0;

    M_ = p.M, total_heads_ = p.B * p.M;
    const int64_t limit = tuning.workspace_bytes >= 0 ? tuning.workspace_bytes : kWorkspaceBytes;
    const int64_t fitting =
        std::min(limit / lay_out(1).bytes, kMaxIndex / std::max(samples_, bins));
    const int64_t chunks = (total_heads_ - 1) / std::max<int64_t>(fitting, 1) + 1;
    heads_ = (total_heads_ - 1) / chunks + 1;
  }

  bool in_use() const { return in_use_; }
  int64_t heads() const { return heads_; }                               // of a chunk
  int64_t bytes() const { return in_use_ ? lay_out(heads_).bytes : 0; }  // of workspace

  // The chunk that starts at a head; the last one may be shorter.
  Bins chunk(int64_t first_head, void* workspace) const {
    Bins bins = bins_;
    bins.first_b = int32_t(first_head / M_);
    bins.first_m = int32_t(first_head % M_);
    bins.heads = int32_t(std::min(heads_, total_heads_ - first_head));
    const Offsets at = lay_out(bins.heads);
    auto* const memory = static_cast<unsigned char*>(workspace);
    bins.count = reinterpret_cast<uint32_t*>(memory);
    bins.total = bins.count + bins.heads * int64_t(bins.per_head);
    bins.end = reinterpret_cast<uint32_t*>(memory + at.end);
    bins.samples = reinterpret_cast<uint32_t*>(memory + at.samples);
    bins.records = memory + at.records;
    bins.softmax = memory + at.softmax;
    bins.pixel_grads = pixel_grad_bytes_ ? memory + at.pixel_grads : nullptr;
    return bins;
  }

 private:
  static constexpr int64_t kMaxIndex = std::numeric_limits<int32_t>::max();

  struct Offsets {  // bytes from the start of the workspace
    int64_t end, samples, records, softmax, pixel_grads, bytes;
  };

  Offsets lay_out(int64_t heads) const {
    const auto aligned = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
    Offsets at;
    at.end = aligned(4 * (heads * int64_t(bins_.per_head) + 1));
    at.samples = at.end + aligned(4 * heads * int64_t(bins_.per_head));
    at.records = at.samples + aligned(4 * heads * samples_);
    at.softmax = at.records + heads * samples_ * bins_.record_size * 16;
    at.pixel_grads = at.softmax + aligned(heads * softmax_bytes_);
    at.bytes = at.pixel_grads + aligned(heads * samples_ * pixel_grad_bytes_);
    return at;
  }

  bool in_use_ = false;
  Bins bins_ = {};                   // what all chunks share
  int64_t samples_ = 0;              // of a head
  int64_t M_ = 0, total_heads_ = 0;  // M and B * M
  int64_t heads_ = 0;
  int64_t softmax_bytes_ = 0;     // of a head
  int64_t pixel_grad_bytes_ = 0;  // of a sample
};

}  // namespace stdeform::cuda
