// Packed copies of single heads: the rows of RowNumbers (rows.h), then 2^N rows outside the volume,
// each of D numbers rounded up to whole vectors. Rows outside start as zeros.
//
// A row is the D channels of one cell. In the caller's arrays the rows of a head are M * D elements
// apart and compete for few cache sets. The packed copy of a head stays in the L2 cache while all
// queries of that head read it.
#pragma once

#include <algorithm>
#include <new>

#include "cpu/rows.h"

namespace stdeform {
namespace {

// What the forward packs numbers of type T as: what is fastest to read.
template <class T>
struct PackedType {
  using type = T;
};
template <>
struct PackedType<Half> {
  using type = float;
};
template <>
struct PackedType<BFloat16> {
  using type = BFloat16Pair;
};
template <class T>
using Packed = typename PackedType<T>::type;

// The n channels of a cell, and of the next one along x; null for a cell outside.
template <class T, class To>
STDEFORM_INLINE void pack_row(const T* cell, const T*, int64_t n, To* to) {
  if (!cell) {
    std::fill(to, to + n, To());
  } else if constexpr (std::is_same_v<T, To>) {
    std::memcpy(to, cell, size_t(n) * sizeof(T));
  } else {
    load_numbers(cell, n, to);
  }
}
STDEFORM_INLINE void pack_row(const BFloat16* cell, const BFloat16* next, int64_t n,
                              BFloat16Pair* to) {
  store_pairs(cell, next, n, to);
}

template <class T>
class PackedHeads {
  using Real = Compute<T>;

 public:
  PackedHeads(int64_t num_copies, const RowNumbers& rows, int64_t num_outside, int64_t channels,
              int64_t vectors)
      : rows_(rows),
        num_outside_(num_outside),
        channels_(channels),
        row_stride_(vectors * kLanes<Real>) {
    const size_t bytes = size_t(num_copies * copy_size()) * sizeof(T);
    data_ = static_cast<T*>(::operator new(bytes, kAlignment));
  }
  ~PackedHeads() { ::operator delete(data_, kAlignment); }
  PackedHeads(const PackedHeads&) = delete;
  PackedHeads& operator=(const PackedHeads&) = delete;

  T* operator[](int64_t copy) { return data_ + copy * copy_size(); }

  // Copies rows [begin, end) from the cells of a strided array. The range that ends with the last
  // row also zeroes the rows outside; so does `zero`.
  template <class From>
  void pack(int64_t copy, const From* from, int64_t from_stride, int64_t begin, int64_t end) {
    T* first = (*this)[copy];
    rows_.for_each(begin, end, [&](int64_t row, int64_t cell, int64_t next) {
      T* to = first + row * row_stride_;
      pack_row(cell < 0 ? nullptr : from + cell * from_stride,
               next < 0 ? nullptr : from + next * from_stride, channels_, to);
      std::memset(to + channels_, 0, size_t(row_stride_ - channels_) * sizeof(T));
    });
    if (end == rows_.count()) zero(copy, end, end);
  }

  void zero(int64_t copy, int64_t begin, int64_t end) {
    const int64_t rows = end - begin + (end == rows_.count() ? num_outside_ : 0);
    std::memset((*this)[copy] + begin * row_stride_, 0, size_t(rows * row_stride_) * sizeof(T));
  }

  // Copies rows [begin, end) to the cells of a strided array of any element type.
  template <class To>
  void unpack(int64_t copy, To* to, int64_t to_stride, int64_t begin, int64_t end) {
    const T* from = (*this)[copy];
    rows_.for_each(begin, end, [&](int64_t row, int64_t cell, int64_t) {
      if (cell < 0) return;
      prefetch<true>(to + (cell + kPrefetch) * to_stride, channels_);
      store_numbers(from + row * row_stride_, channels_, to + cell * to_stride);
    });
  }

 private:
  static constexpr int64_t kPrefetch = 8;  // cells ahead; prefetching past the end does nothing
  static constexpr std::align_val_t kAlignment{64};
  int64_t copy_size() const { return (rows_.count() + num_outside_) * row_stride_; }

  const RowNumbers& rows_;
  const int64_t num_outside_, channels_, row_stride_;
  T* data_;
};

}  // namespace
}  // namespace stdeform
