// How the row of a cell, its D channels, is found from an offset in a Chunk.
//
// Corners outside the volume have rows of their own, one for each of the 2^N corners: the backward
// adds to them as well, and an addition waits for the one before it to the same row.
#pragma once

#include "core/problem.h"
#include "cpu/simd.h"

namespace stdeform {
namespace {

// In a packed copy of a head, the offset is cell * stride; the rows outside are the copy's last.
template <class Real>
struct PackedRows {
  IntOf<Real> stride, outside;  // in vectors, to reach further with 32 bits

  PackedRows(int64_t vectors, int64_t cells)
      : stride(IntOf<Real>(vectors)), outside(IntOf<Real>(vectors * cells)) {}

  IntVector<Real> offsets(int corner, IntVector<Real> offset, IntVector<Real> is_inside) const {
    return is_inside ? offset : IntVector<Real>{} + (outside + corner * stride);
  }
  template <class T>
  STDEFORM_INLINE T* find(T* first, IntOf<Real> offset) const {
    return first + int64_t(offset) * kLanes<Real>;
  }
  template <bool to_write, class T>
  STDEFORM_INLINE void prefetch(T*, IntOf<Real>, int64_t) const {}  // the cache holds the copy
};

// In the caller's array, the offset is the cell, or -1 - corner for a corner outside the volume.
template <class T>
struct StridedRows {
  int64_t stride;          // in elements
  T* outside;              // [2^N, outside_stride]
  int64_t outside_stride;  // 0 if all corners share a row

  template <class Ints>
  Ints offsets(int corner, Ints cell, Ints is_inside) const {
    return is_inside ? cell : Ints{} - 1 - corner;
  }
  template <class Offset>
  STDEFORM_INLINE T* find(T* first, Offset offset) const {
    return offset < 0 ? outside + ~offset * outside_stride : first + offset * stride;
  }
  template <bool to_write, class Offset>
  STDEFORM_INLINE void prefetch(T* first, Offset offset, int64_t channels) const {
    stdeform::prefetch<to_write>(find(first, offset), channels);
  }
};

// Whether packing would cost more than the strided reads that it saves. Those need rows of whole
// vectors.
template <class Real>
bool has_few_samples(const Problem& p) {
  return (p.Q * p.P << p.N) <= 2 * p.S && p.D % kLanes<Real> == 0;
}

}  // namespace
}  // namespace stdeform
