// Packed copies of single heads, each [S + 2^N, D rounded up to whole vectors]. The last rows are
// for the corners outside the volume, and start as zeros.
//
// A row is the D channels of one cell. In the caller's arrays the rows of a head are M * D elements
// apart and compete for few cache sets. The packed copy of a head stays in the L2 cache while all
// queries of that head read it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "cpu/simd.h"

namespace stdeform {
namespace {

template <class T>
class PackedHeads {
 public:
  PackedHeads(int64_t num_copies, int64_t rows, int64_t num_outside, int64_t channels,
              int64_t vectors)
      : rows_(rows),
        num_outside_(num_outside),
        channels_(channels),
        row_stride_(vectors * kLanes<Compute<T>>) {
    const size_t bytes = size_t(num_copies * copy_size()) * sizeof(T);
    data_ = static_cast<T*>(std::aligned_alloc(kAlignment, round_up(bytes, kAlignment)));
    if (!data_) throw std::bad_alloc();
  }
  ~PackedHeads() { std::free(data_); }
  PackedHeads(const PackedHeads&) = delete;
  PackedHeads& operator=(const PackedHeads&) = delete;

  T* operator[](int64_t copy) { return data_ + copy * copy_size(); }

  // Copies rows [begin, end) from a strided array. The range that ends with the last row also
  // zeroes the rows outside; so does `zero`.
  void pack(int64_t copy, const T* from, int64_t from_stride, int64_t begin, int64_t end) {
    T* to = (*this)[copy];
    for (int64_t r = begin; r < end; ++r) {
      T* row = to + r * row_stride_;
      std::memcpy(row, from + r * from_stride, size_t(channels_) * sizeof(T));
      std::memset(row + channels_, 0, size_t(row_stride_ - channels_) * sizeof(T));
    }
    if (end == rows_) {
      std::memset(to + rows_ * row_stride_, 0, size_t(num_outside_ * row_stride_) * sizeof(T));
    }
  }

  void zero(int64_t copy, int64_t begin, int64_t end) {
    const int64_t rows = end - begin + (end == rows_ ? num_outside_ : 0);
    std::memset((*this)[copy] + begin * row_stride_, 0, size_t(rows * row_stride_) * sizeof(T));
  }

  // Copies rows [begin, end) to a strided array of any element type.
  template <class To>
  void unpack(int64_t copy, To* to, int64_t to_stride, int64_t begin, int64_t end) {
    const T* from = (*this)[copy];
    for (int64_t r = begin; r < end; ++r) {
      if (r + kPrefetch < end) prefetch<true>(to + (r + kPrefetch) * to_stride, channels_);
      store_numbers(from + r * row_stride_, channels_, to + r * to_stride);
    }
  }

 private:
  static constexpr int64_t kPrefetch = 8;  // rows ahead
  static constexpr size_t kAlignment = 64;
  int64_t copy_size() const { return (rows_ + num_outside_) * row_stride_; }

  int64_t rows_, num_outside_, channels_, row_stride_;
  T* data_;
};

}  // namespace
}  // namespace stdeform
