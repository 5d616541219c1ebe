// Further parameters of the kernels that work on bins.
//
// A bin holds the samples of one batch element, head and level that are between the same cells,
// and so read the same corners. A level with `size` cells along an axis has size + 1 bins along it:
// the first and the last one have a corner outside.
#pragma once

#include "core/macros.h"
#include "cuda/params.h"

namespace stdeform::cuda {

// Division of numbers below 2^31 by a constant, as a multiplication.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t divisor) {
    while (int64_t(1) << shift_ < divisor) ++shift_;
    multiplier_ = uint32_t(((uint64_t(1) << (31 + shift_)) + divisor - 1) / divisor);
  }

  // Returns the quotient and leaves the remainder in `number`.
  STDEFORM_INLINE uint32_t divide(uint32_t& number, uint32_t divisor) const {
    const auto quotient = uint32_t(uint64_t(2 * number) * multiplier_ >> 32) >> shift_;
    number -= quotient * divisor;
    return quotient;
  }

 private:
  uint32_t multiplier_ = 0;
  int32_t shift_ = 0;
};

// What fill_kernel writes of a sample, in the compute type; images have no t.
template <class Real>
struct alignas(16) BinRecord {
  Real pixel[kMaxAxes];
  Real attention;
};

// A chunk of heads that are processed together; a head is one of the B * M pairs of a batch element
// and a head, number b * M + m. Arrays are [heads, ...] of this chunk.
struct Bins {
  int32_t first_b, first_m;    // the first head
  int32_t heads;               // of this chunk
  uint32_t per_head;           // bins of all levels
  uint32_t first[kMaxLevels];  // bin of each level
  int32_t samples_per_warp;    // where sums may be formed in any order
  Divisor by_P, by_Q, by_M;    // as in KernelParams

  uint32_t* count;  // [per_head] samples of each bin
  uint32_t* total;  // samples of all bins; right behind the counts
  uint32_t* end;  // [per_head] end of each bin in `samples`; its next free slot while it is filled
  uint32_t* samples;    // sample numbers, [heads, Q, P], sorted by bins
  void* records;        // a BinRecord of each
  int32_t record_size;  // in 16 bytes
  void* softmax;        // [Q, 2] largest logit and scale of each query-head, in the compute type
  void* pixel_grads;    // [Q, P, N] in the compute type, or null: grad_positions has room for them
};

}  // namespace stdeform::cuda
