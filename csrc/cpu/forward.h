// Forward kernel. ThreadPartition (threads/partition.h) says which thread works on which head.
//
//   1 prefault  populate the pages of a large result                 Prefault       prefault.h
//   For each head, which is one head of one batch element:
//   2 pack      copy its value, unless it is read by few samples     PackedHeads    packed_heads.h
//   For each block of queries:
//   3 read      scores -> attention weights, with softmax of logits  QueryBlock     query_block.h
//   For each query of the block:
//   4 corners   positions -> pixel coordinates -> 2^N corner rows    CornerFinder   corners.h
//               and their weights, for a chunk of samples
//   5 gather    sum += weight * row, over samples and corners        gather         gather.h
//   6 store     round the sum once, to the value's dtype             store_numbers  simd.h
#pragma once

#include "cpu/gather.h"
#include "cpu/packed_heads.h"
#include "cpu/prefault.h"
#include "cpu/threads/partition.h"

namespace stdeform {
namespace {

// Rows says where a head's value is read: from a packed copy (PackedRows) or from the caller's
// array (StridedRows).
template <class T, int N, class Rows>
class ForwardKernel {
  using Real = Compute<T>;
  static constexpr bool kIsPacked = std::is_same_v<Rows, PackedRows<Real>>;
  static constexpr int kOutside = 1 << N;  // rows outside the volume

  // The working memory of one thread.
  struct Scratch {
    Scratch(const ForwardKernel& kernel, int64_t max_heads)
        : block(kernel.p_, kernel.table_, max_heads),
          sum(new Real[kernel.vectors_ * kLanes<Real>]) {}
    QueryBlock<Real, N> block;
    Chunk<Real, N> chunk;
    std::unique_ptr<Real[]> sum;  // [D], padded to whole vectors
  };

 public:
  explicit ForwardKernel(const Problem& p)
      : p_(p),
        partition_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        numbers_(p, kIsPacked),
        table_(p, numbers_, kIsPacked ? vectors_ : 1),
        finder_(p, table_),
        zeros_(kIsPacked ? nullptr : new T[p.D]()),
        values_(kIsPacked ? partition_.num_copies() : 0, numbers_, kOutside, p.D, vectors_) {
    prefault_.add(p.out.data, size_t(p.B * p.Q * p.M * p.D) * sizeof(T));
  }

  void run() {
    partition_.run([this] {
      prefault_.run();  // 1 prefault
      if constexpr (kIsPacked) {
        Scratch scratch(*this, 1);
        partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
          pack(head, copy, 0, numbers_.count());
          run_queries(scratch, head, copy, 0, p_.Q);
        });
        partition_.for_each_shared_range(numbers_.count(), 1,
                                         [&](auto... range) { pack(range...); });
        partition_.for_each_shared_range(p_.Q, 4,
                                         [&](auto... range) { run_queries(scratch, range...); });
      } else {
        Scratch scratch(*this, p_.M);
        partition_.for_each_range(p_.B * p_.Q, 4, [&](int64_t begin, int64_t end) {
          for (int64_t b = begin / p_.Q; b * p_.Q < end; ++b) {
            run_queries_in_place(scratch, {b, 0, p_.M}, std::max<int64_t>(begin - b * p_.Q, 0),
                                 std::min(end - b * p_.Q, p_.Q));
          }
        });
      }
    });
  }

 private:
  // 2 pack: rows [begin, end) of a head.
  void pack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    const T* value = at<T>(p_.value, head / p_.M, 0, head % p_.M);
    values_.pack(copy, value, p_.value.stride[1], begin, end);
  }

  // Queries [begin, end) of a head.
  void run_queries(Scratch& scratch, int64_t head, int64_t copy, int64_t begin, int64_t end) {
    const int64_t b = head / p_.M, m = head % p_.M;
    const Rows rows = {vectors_, numbers_.count()};
    scratch.block.for_each(begin, end, [&](int64_t first, int64_t last) {
      scratch.block.read({b, m, 1}, first, last);  // 3 read
      const auto place = [&](int64_t i) { return QueryHead{first + i, m}; };
      sum_rows(scratch, b, last - first, place, rows, [&](int64_t) { return values_[copy]; });
    });
  }

  // The heads of a query after one another: they read cells near each other.
  void run_queries_in_place(Scratch& scratch, HeadRange heads, int64_t begin, int64_t end) {
    const Rows rows = {p_.value.stride[1], zeros_.get(), 0};
    scratch.block.for_each(begin, end, [&](int64_t first, int64_t last) {
      scratch.block.read(heads, first, last);  // 3 read
      const auto place = [&](int64_t i) { return QueryHead{first + i / p_.M, i % p_.M}; };
      sum_rows(scratch, heads.b, (last - first) * p_.M, place, rows,
               [&](int64_t m) { return at<T>(p_.value, heads.b, 0, m); });
    });
  }

  // The results of `count` queries and heads. `value_of(m)`: [S, D], of head m.
  template <class Place, class ValueOf>
  void sum_rows(Scratch& scratch, int64_t b, int64_t count, Place place, Rows rows,
                ValueOf value_of) {
    Real* sum = scratch.sum.get();
    finder_.for_each_chunk(  // 4 corners
        scratch.block, count, place, rows, scratch.chunk,
        [&](QueryHead i, const Chunk<Real, N>& chunk) {
          if (chunk.first == 0) std::fill(sum, sum + vectors_ * kLanes<Real>, Real(0));
          gather(value_of(i.m), vectors_, rows, chunk, sum);  // 5 gather
          if (!chunk.is_last) return;
          scratch.block.prefetch_next(i);
          store_numbers(sum, p_.D, at<T>(p_.out, b, i.q, i.m));  // 6 store
          prefetch<true>(at<T>(p_.out, b, std::min(i.q + kPrefetch, p_.Q - 1), i.m), p_.D);
        });
  }

  const Problem& p_;
  const ThreadPartition partition_;
  const int64_t vectors_;  // per row, the last one padded
  const RowNumbers numbers_;
  const SampleTable<Real, N> table_;
  const CornerFinder<Real, N> finder_;
  const std::unique_ptr<T[]> zeros_;  // [D], the row outside the volume, if not packed
  PackedHeads<Packed<T>> values_;
  Prefault prefault_;
};

template <class T, int N>
void run_forward_kernel(const Problem& p) {
  if (has_few_samples<Compute<T>>(p)) {
    ForwardKernel<T, N, StridedRows<const T>>(p).run();
  } else {
    ForwardKernel<T, N, PackedRows<Compute<T>>>(p).run();
  }
}

}  // namespace
}  // namespace stdeform
