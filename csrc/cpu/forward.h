// Forward kernel. ThreadPartition (threads.h) says which thread works on which head.
//
//   1 prefault  populate the pages of a large result                 Prefault       prefault.h
//   For each head, which is one head of one batch element:
//   2 pack      copy its value, unless it is read by few samples     PackedHeads    packed_heads.h
//   For each query of the head:
//   3 begin     scores -> attention weights, with softmax of logits  SampleReader   sample_reader.h
//   4 read      positions -> pixel coordinates -> 2^N corner rows    SampleReader   sampling.h
//               and their weights, for a chunk of samples
//   5 gather    sum += weight * row, over samples and corners        gather         gather.h
//   6 store     round the sum once, to the value's dtype             store_numbers  simd.h
#pragma once

#include "cpu/gather.h"
#include "cpu/packed_heads.h"
#include "cpu/prefault.h"
#include "cpu/threads.h"

namespace stdeform {
namespace {

// Rows says where a head's value is read: from a packed copy (PackedRows) or from the caller's
// array (StridedRows).
template <class T, int N, class Rows>
class ForwardKernel {
  using Real = Compute<T>;
  static constexpr bool kIsPacked = std::is_same_v<Rows, PackedRows<Real>>;

  // The working memory of one thread.
  struct Scratch {
    explicit Scratch(const ForwardKernel& kernel)
        : reader(kernel.p_, kernel.table_), sum(new Real[kernel.vectors_ * kLanes<Real>]) {}
    SampleReader<Real, N> reader;
    Chunk<Real, N> chunk;
    std::unique_ptr<Real[]> sum;  // [D], padded to whole vectors
  };

 public:
  explicit ForwardKernel(const Problem& p)
      : p_(p),
        partition_(p),
        table_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        zeros_(kIsPacked ? nullptr : new T[p.D]()),
        values_(kIsPacked ? partition_.num_copies() : 0, p.S, p.D, vectors_) {
    prefault_.add(p.out.data, size_t(p.B * p.Q * p.M * p.D) * sizeof(T));
  }

  void run() {
    partition_.run([this] {
      prefault_.run();  // 1 prefault
      Scratch scratch(*this);
      if constexpr (kIsPacked) {
        partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
          pack(head, copy, 0, p_.S);
          run_queries(scratch, head, copy, 0, p_.Q);
        });
        partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { pack(range...); });
        partition_.for_each_shared_range(p_.Q, 4,
                                         [&](auto... range) { run_queries(scratch, range...); });
      } else {
        // The heads of a query after one another: they read cells near each other.
        const Rows rows = {p_.value.stride[1], zeros_.get()};
        partition_.for_each_range(p_.B * p_.Q, 4, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / p_.Q, q = i % p_.Q;
            for (int64_t m = 0; m < p_.M; ++m)
              run_query(scratch, b, q, m, at<T>(p_.value, b, 0, m), rows);
          }
        });
      }
    });
  }

 private:
  // 2 pack: cells [begin, end) of a head.
  void pack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    const T* value = at<T>(p_.value, head / p_.M, 0, head % p_.M);
    values_.pack(copy, value, p_.value.stride[1], begin, end);
  }

  // Queries [begin, end) of a head.
  void run_queries(Scratch& scratch, int64_t head, int64_t copy, int64_t begin, int64_t end) {
    const int64_t b = head / p_.M, m = head % p_.M;
    const Rows rows = {IntOf<Real>(vectors_), IntOf<Real>(p_.S * vectors_)};
    for (int64_t q = begin; q < end; ++q) {
      if (q + kPrefetch < end) {
        scratch.reader.prefetch(b, q + kPrefetch, m);
        prefetch<true>(at<T>(p_.out, b, q + kPrefetch, m), p_.D);
      }
      run_query(scratch, b, q, m, values_[copy], rows);
    }
  }

  // `value`: [S, D], of the head.
  void run_query(Scratch& scratch, int64_t b, int64_t q, int64_t m, const T* value, Rows rows) {
    Real* sum = scratch.sum.get();
    scratch.reader.begin(b, q, m);  // 3 begin
    std::fill(sum, sum + vectors_ * kLanes<Real>, Real(0));
    for (int64_t first = 0; first < table_.count; first += kChunk) {
      scratch.reader.read(b, q, m, first, rows, scratch.chunk);  // 4 read
      gather(value, vectors_, rows, scratch.chunk, sum);         // 5 gather
    }
    store_numbers(sum, p_.D, at<T>(p_.out, b, q, m));  // 6 store
  }

  const Problem& p_;
  const ThreadPartition partition_;
  const SampleTable<Real, N> table_;
  const int64_t vectors_;             // per row, the last one padded
  const std::unique_ptr<T[]> zeros_;  // [D], the row outside the volume, if not packed
  PackedHeads<T> values_;
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
