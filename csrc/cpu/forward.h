// The forward kernel.
#pragma once

#include "cpu/gather.h"
#include "cpu/packed_heads.h"
#include "cpu/prefault.h"
#include "cpu/threads.h"

namespace stdeform {
namespace {

// Reads the values of a head from a packed copy (PackedRows) or where they are (StridedRows).
template <class T, int N, class Rows>
class Forward {
  using Real = Compute<T>;
  static constexpr bool packed = std::is_same_v<Rows, PackedRows<Real>>;

  // What one thread works with.
  struct Scratch {
    explicit Scratch(const Forward& f)
        : reader(f.p_, f.table_), sum(new Real[f.vectors_ * kLanes<Real>]) {}
    SampleReader<Real, N> reader;
    Chunk<Real, N, Rows> chunk;
    std::unique_ptr<Real[]> sum;  // [D], padded
  };

 public:
  explicit Forward(const Problem& p)
      : p_(p),
        partition_(p),
        table_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        zeros_(packed ? nullptr : new T[p.D]()),
        values_(packed ? partition_.num_copies() : 0, p.S, p.D, vectors_) {
    prefault_.add(p.out.data, size_t(p.B * p.Q * p.M * p.D) * sizeof(T));
  }

  void run() {
    partition_.run([this] {
      prefault_.run();
      Scratch scratch(*this);
      partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
        pack(head, copy, 0, p_.S);
        attend(scratch, head, copy, 0, p_.Q);
      });
      partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { pack(range...); });
      partition_.for_each_shared_range(p_.Q, 4, [&](auto... range) { attend(scratch, range...); });
    });
  }

 private:
  const T* head_value(int64_t head) const {
    const int64_t* s = p_.value.stride;
    return static_cast<const T*>(p_.value.data) + head / p_.M * s[0] + head % p_.M * s[2];
  }

  void pack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (packed) values_.pack(copy, head_value(head), p_.value.stride[1], begin, end);
  }

  Rows layout(const T* rows) const {
    if constexpr (packed) return {IntOf<Real>(vectors_), IntOf<Real>(p_.S * vectors_)};
    // In elements, between arrays that are not one: both are aligned to their element.
    const auto bytes = reinterpret_cast<intptr_t>(zeros_.get()) - reinterpret_cast<intptr_t>(rows);
    return {typename Rows::Offset(p_.value.stride[1]),
            typename Rows::Offset(bytes / intptr_t(sizeof(T)))};
  }

  void attend(Scratch& scratch, int64_t head, int64_t copy, int64_t begin, int64_t end) {
    const int64_t b = head / p_.M, m = head % p_.M;
    const T* rows = packed ? values_[copy] : head_value(head);
    const Rows where = layout(rows);
    const int64_t* s = p_.out.stride;
    T* out = static_cast<T*>(p_.out.data) + b * s[0] + m * s[2];
    Real* sum = scratch.sum.get();
    for (int64_t q = begin; q < end; ++q) {
      if (q + kPrefetch < end) {
        scratch.reader.prefetch(b, q + kPrefetch, m);
        prefetch<true>(out + (q + kPrefetch) * s[1], p_.D);
      }
      scratch.reader.begin(b, q, m);
      std::fill(sum, sum + vectors_ * kLanes<Real>, Real(0));
      for (int64_t first = 0; first < table_.count; first += kChunk) {
        scratch.reader.read(b, q, m, first, where, scratch.chunk);
        gather(rows, vectors_, scratch.chunk, sum);
      }
      store_numbers(sum, p_.D, out + q * s[1]);
    }
  }

  const Problem& p_;
  const ThreadPartition partition_;
  const SampleTable<Real, N> table_;
  const int64_t vectors_;             // per row, the last one padded
  const std::unique_ptr<T[]> zeros_;  // what a corner that does not exist reads, if not packed
  PackedHeads<T> values_;
  Prefault prefault_;
};

template <class T, int N>
void run_forward(const Problem& p) {
  using Real = Compute<T>;
  // With few samples, packing would cost more than the reads. These go to the value itself then,
  // which needs rows of whole vectors.
  const bool few = p.Q * p.L * p.K * (1 << N) <= 2 * p.S;
  if (few && p.D % kLanes<Real> == 0) {
    Forward<T, N, StridedRows>(p).run();
  } else {
    Forward<T, N, PackedRows<Real>>(p).run();
  }
}

}  // namespace
}  // namespace stdeform
