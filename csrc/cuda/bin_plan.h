// Whether the backward works bin by bin, in which chunks, and with how much memory. Host code, no
// CUDA headers.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "bins.h"
#include "tuning.h"

namespace stdeform::cuda {

// Samples per bin from which on bins are taken. Reasoned, not measured: sorting and the sums of a
// bin should cost about as much memory traffic as this many samples that add to memory themselves.
constexpr int64_t kSamplesPerBin = 4;
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;  // at most, but room for one head
constexpr int64_t kRunOfSamples = 128;

class BinPlan {
 public:
  // Throws std::invalid_argument if the order of sums must be fixed and bins cannot do that.
  BinPlan(const Problem& p, const Tuning& tuning) : p_(p) {
    if (!p.grad_value.data) return;  // nothing is summed in memory
    samples_ = p.Q * p.L * p.K;
    for (int64_t l = 0; l < p.L; ++l) {
      int64_t bins = 1;
      for (int n = 0; n < p.N; ++n) bins *= p.spatial_shapes[l * p.N + n] + 1;
      bins_ += bins;
    }
    const bool possible = std::max(samples_, bins_) <= kMost;
    if (p.deterministic && !possible) {
      throw std::invalid_argument(
          "deterministic algorithms take up to 2^31 samples and bins per batch row and head on "
          "CUDA, got " +
          std::to_string(samples_) + " and " + std::to_string(bins_));
    }
    const int64_t enough = tuning.samples_per_bin >= 0 ? tuning.samples_per_bin : kSamplesPerBin;
    const bool pays = samples_ >= enough * bins_;
    const bool asked = tuning.backward_bins >= 0 ? tuning.backward_bins != 0 : pays;
    in_use_ = p.deterministic || (possible && asked);
    run_ = int32_t(tuning.bin_run > 0 ? tuning.bin_run : kRunOfSamples);
    if (!in_use_) return;
    const int64_t limit = tuning.workspace_bytes >= 0 ? tuning.workspace_bytes : kWorkspaceBytes;
    const int64_t all = p.B * p.M;
    const int64_t fitting = std::min(limit / lay_out(1).bytes, kMost / std::max(samples_, bins_));
    const int64_t chunks = (all - 1) / std::max<int64_t>(fitting, 1) + 1;
    heads_ = (all - 1) / chunks + 1;
  }

  bool in_use() const { return in_use_; }
  int64_t heads() const { return heads_; }  // of a chunk
  int64_t bytes() const { return in_use_ ? lay_out(heads_).bytes : 0; }

  // The chunk that starts at a head; the last one may be shorter.
  Bins chunk(int64_t first_head) const {
    Bins bins = {};
    bins.first_b = int32_t(first_head / p_.M);
    bins.first_m = int32_t(first_head % p_.M);
    bins.heads = int32_t(std::min(heads_, p_.B * p_.M - first_head));
    bins.per_head = uint32_t(bins_);
    uint32_t first = 0;
    for (int64_t l = 0; l < p_.L; ++l) {
      bins.first[l] = first;
      uint32_t of_level = 1;
      for (int n = 0; n < p_.N; ++n) of_level *= uint32_t(p_.spatial_shapes[l * p_.N + n] + 1);
      first += of_level;
    }
    bins.run = run_;
    const Places at = lay_out(bins.heads);
    auto* const memory = static_cast<unsigned char*>(p_.workspace);
    bins.count = reinterpret_cast<uint32_t*>(memory);
    bins.total = bins.count + bins.heads * bins_;
    bins.end = reinterpret_cast<uint32_t*>(memory + at.end);
    bins.samples = reinterpret_cast<uint32_t*>(memory + at.samples);
    bins.softmax = memory + at.softmax;
    bins.pixel_grads = keeps_pixel_grads() ? memory + at.pixel_grads : nullptr;
    return bins;
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

  struct Places {  // bytes from the start of the workspace
    int64_t end, samples, softmax, pixel_grads, bytes;
  };

  Places lay_out(int64_t heads) const {
    const auto aligned = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
    Places at;
    at.end = aligned(4 * (heads * bins_ + 1));
    at.samples = at.end + aligned(4 * heads * bins_);
    at.softmax = at.samples + aligned(4 * heads * samples_);
    at.pixel_grads = at.softmax + aligned(p_.reference.data ? heads * p_.Q * 2 * real_size() : 0);
    at.bytes =
        at.pixel_grads + aligned(keeps_pixel_grads() ? heads * samples_ * p_.N * real_size() : 0);
    return at;
  }

  DType real() const { return p_.value.dtype == DType::f64 ? DType::f64 : DType::f32; }
  int64_t real_size() const { return real() == DType::f64 ? 8 : 4; }

  // They are wanted, and grad_positions cannot hold them until they are final.
  bool keeps_pixel_grads() const {
    const bool wanted = p_.grad_positions.data || p_.grad_reference.data;
    return wanted && !(p_.grad_positions.data && p_.grad_positions.dtype == real());
  }

  const Problem& p_;
  bool in_use_ = false;
  int64_t samples_ = 0, bins_ = 0;  // of a head
  int64_t heads_ = 0;
  int32_t run_ = 0;
};

}  // namespace stdeform::cuda
