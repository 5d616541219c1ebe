// The backward kernel. Whole units take one pass over their samples; a head that is shared takes
// one for what is read (dots), shared out by queries, and one for what is written (scatter), shared
// out by rows, so that no two threads add to one row.
#pragma once

#include "cpu/packed_heads.h"
#include "cpu/prefault.h"
#include "cpu/sample_grads.h"
#include "cpu/threads.h"

namespace stdeform {
namespace {

template <class T, int N>
class Backward {
  using Real = Compute<T>;
  using Rows = PackedRows<Real>;

  // What one thread works with.
  struct Scratch {
    explicit Scratch(const Backward& f)
        : reader(f.p_, f.table_),
          grads(f.p_, f.table_, f.head_reference_.get()),
          grad_out(new Real[f.vectors_ * kLanes<Real>]()) {}
    SampleReader<Real, N> reader;
    SampleGrads<Real, N> grads;
    Chunk<Real, N, Rows> chunk;
    Dots<Real, N> dots;
    std::unique_ptr<Real[]> grad_out;  // [D], padded with zeros
  };

 public:
  explicit Backward(const Problem& p)
      : p_(p),
        partition_(p),
        table_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        layout_{IntOf<Real>(vectors_), IntOf<Real>(p.S * vectors_)},
        wants_samples_(p.grad_positions.data || p.grad_scores.data || p.grad_reference.data),
        wants_value_(p.grad_value.data),
        head_reference_(p.grad_reference.data ? new Real[p.B * p.M * p.Q * reference_width()]
                                              : nullptr),
        values_(wants_samples_ ? partition_.num_copies() : 0, p.S, p.D, vectors_),
        grad_values_(wants_value_ ? partition_.num_copies() : 0, p.S, p.D, vectors_) {
    will_write(p.grad_value, p.B * p.S * p.M * p.D);
    will_write(p.grad_positions, p.B * p.Q * p.M * table_.count * N);
    will_write(p.grad_scores, p.B * p.Q * p.M * table_.count);
  }

  void run() {
    partition_.run([this] {
      prefault_.run();
      Scratch scratch(*this);
      partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
        load(head, copy, 0, p_.S);
        if (!wants_value_) {
          visit<true, Scatter::none>(scratch, head, copy, 0, p_.Q);
        } else if (!wants_samples_) {
          visit<false, Scatter::all>(scratch, head, copy, 0, p_.Q);
        } else {
          visit<true, Scatter::all>(scratch, head, copy, 0, p_.Q);
        }
        save(head, copy, 0, p_.S);
      });
      if (partition_.num_shared()) run_shared_heads(scratch);
      if (head_reference_) sum_heads();
    });
  }

 private:
  void will_write(const Array& to, int64_t numbers) {
    prefault_.add(to.data, size_t(numbers) * size_of(to.dtype));
  }

  void run_shared_heads(Scratch& scratch) {
    partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { load(range...); });
    if (wants_samples_) {
      partition_.for_each_shared_range(
          p_.Q, 4, [&](auto... range) { visit<true, Scatter::none>(scratch, range...); });
    }
    if (wants_value_) {
      partition_.for_each_shared_range(
          p_.S, 1, [&](int64_t head, int64_t copy, int64_t begin, int64_t end) {
            const RowRange range = {begin * vectors_, end * vectors_};
            visit<false, Scatter::range>(scratch, head, copy, 0, p_.Q, range);
          });
    }
    partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { save(range...); });
  }

  void load(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (wants_samples_) {
      const int64_t* s = p_.value.stride;
      const T* from =
          static_cast<const T*>(p_.value.data) + head / p_.M * s[0] + head % p_.M * s[2];
      values_.pack(copy, from, s[1], begin, end);
    }
    if (wants_value_) grad_values_.zero(copy, begin, end);
  }

  void save(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (!wants_value_) return;
    T* to = static_cast<T*>(p_.grad_value.data);
    to += head / p_.M * p_.S * p_.M * p_.D + head % p_.M * p_.D;
    grad_values_.unpack(copy, to, p_.M * p_.D, begin, end);
  }

  // One pass over the samples of queries [begin, end) of a head.
  template <bool wants_dots, Scatter to>
  void visit(Scratch& scratch, int64_t head, int64_t copy, int64_t begin, int64_t end,
             RowRange range = {}) {
    const int64_t b = head / p_.M, m = head % p_.M;
    const T* rows = wants_dots ? values_[copy] : nullptr;
    Real* grad_rows = to == Scatter::none ? nullptr : grad_values_[copy];
    const int64_t* s = p_.out.stride;
    const T* grad_out = static_cast<const T*>(p_.out.data) + b * s[0] + m * s[2];
    for (int64_t q = begin; q < end; ++q) {
      if (q + kPrefetch < end) {
        scratch.reader.prefetch(b, q + kPrefetch, m);
        prefetch<false>(grad_out + (q + kPrefetch) * s[1], p_.D);
        if (wants_dots) scratch.grads.prefetch(b, q + kPrefetch, m);
      }
      load_numbers(grad_out + q * s[1], p_.D, scratch.grad_out.get());
      const Real* attention = scratch.reader.begin(b, q, m);
      if (wants_dots) scratch.grads.begin_query();
      for (int64_t first = 0; first < table_.count; first += kChunk) {
        scratch.reader.read(b, q, m, first, layout_, scratch.chunk);
        differentiate<wants_dots, to>(rows, grad_rows, vectors_, scratch.grad_out.get(),
                                      scratch.chunk, range, scratch.dots);
        if (wants_dots) scratch.grads.add(b, q, m, first, scratch.chunk, scratch.dots);
      }
      if (wants_dots) scratch.grads.finish_query(b, q, m, attention);
    }
  }

  int64_t reference_width() const { return p_.L * (p_.boxes ? 2 * N : N); }

  // The heads share their reference points; their gradients are added in the order of heads.
  void sum_heads() const {
    const int64_t width = reference_width();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p_.B * p_.Q; ++i) {
      const Real* first = head_reference_.get() + (i / p_.Q * p_.M * p_.Q + i % p_.Q) * width;
      for (int64_t r = 0; r < width; ++r) {
        Real sum = 0;
        for (int64_t m = 0; m < p_.M; ++m) sum += first[m * p_.Q * width + r];
        SampleGrads<Real, N>::write_numbers(p_.grad_reference, i * width + r, &sum, 1);
      }
    }
  }

  const Problem& p_;
  const ThreadPartition partition_;
  const SampleTable<Real, N> table_;
  const int64_t vectors_;  // per row, the last one padded
  const Rows layout_;
  const bool wants_samples_, wants_value_;
  const std::unique_ptr<Real[]> head_reference_;  // [B, M, Q, L, N or 2N]
  PackedHeads<T> values_;
  PackedHeads<Real> grad_values_;
  Prefault prefault_;
};

}  // namespace
}  // namespace stdeform
