// Copies of one head's rows, packed: [S + 1, D rounded up to whole vectors], the last row zero.
//
// Interleaved heads lie M * D apart and share cache sets; packed, a head's slice stays in the
// second-level cache while all queries of that head read it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "cpu/simd.h"

namespace stdeform {
namespace {

template <class T>
class Slices {
 public:
  Slices(int64_t count, int64_t rows, int64_t channels, int64_t vectors)
      : rows_(rows), channels_(channels), row_stride_(vectors * kLanes<Compute<T>>) {
    const size_t bytes = size_t(count * slice_size()) * sizeof(T);
    data_ = static_cast<T*>(std::aligned_alloc(kAlignment, round_up(bytes, kAlignment)));
    if (!data_) throw std::bad_alloc();
  }
  ~Slices() { std::free(data_); }
  Slices(const Slices&) = delete;
  Slices& operator=(const Slices&) = delete;

  T* operator[](int64_t i) { return data_ + i * slice_size(); }

  // Rows [begin, end) of slice i from a strided array; the zero row with the last of them.
  void pack(int64_t i, const T* from, int64_t from_stride, int64_t begin, int64_t end) {
    T* slice = (*this)[i];
    for (int64_t r = begin; r < end; ++r) {
      T* row = slice + r * row_stride_;
      std::memcpy(row, from + r * from_stride, size_t(channels_) * sizeof(T));
      std::memset(row + channels_, 0, size_t(row_stride_ - channels_) * sizeof(T));
    }
    if (end == rows_) std::memset(slice + rows_ * row_stride_, 0, size_t(row_stride_) * sizeof(T));
  }

  void zero(int64_t i, int64_t begin, int64_t end) {
    const int64_t rows = end - begin + (end == rows_ ? 1 : 0);
    std::memset((*this)[i] + begin * row_stride_, 0, size_t(rows * row_stride_) * sizeof(T));
  }

  // Rows [begin, end) of slice i to a strided array of any element type.
  template <class To>
  void unpack(int64_t i, To* to, int64_t to_stride, int64_t begin, int64_t end) {
    const T* slice = (*this)[i];
    for (int64_t r = begin; r < end; ++r) {
      if (r + kPrefetch < end) prefetch<true>(to + (r + kPrefetch) * to_stride, channels_);
      store_row(slice + r * row_stride_, channels_, to + r * to_stride);
    }
  }

 private:
  static constexpr int64_t kPrefetch = 8;  // rows ahead
  static constexpr size_t kAlignment = 64;
  int64_t slice_size() const { return (rows_ + 1) * row_stride_; }

  int64_t rows_, channels_, row_stride_;
  T* data_;
};

}  // namespace
}  // namespace stdeform
