// Backward kernel. ThreadPartition (threads.h) says which thread works on which head.
//
//   1 prefault       populate the pages of large results             Prefault       prefault.h
//   For each head, which is one head of one batch element:
//   2 pack           copy its value, and zero its gradient           PackedHeads    packed_heads.h
//   For each query of the head:
//   3 begin          scores -> attention weights                     SampleReader   sample_reader.h
//   4 read           positions -> corner rows, for a chunk           SampleReader   sampling.h
//   5 differentiate  dots: grad_out . row of each corner             differentiate  gather.h
//                    scatter: row of grad_value += weight * grad_out
//   6 add            dots -> gradients of positions and weights      SampleGrads    sample_grads.h
//   7 finish         through the softmax, to the gradient of scores  SampleGrads    sample_grads.h
//   For each head:
//   8 unpack         round the gradient of its value once            PackedHeads    packed_heads.h
//   For all heads:
//   9 sum heads      add their gradients of reference points         sum_heads
//
// With few samples (sample_reader.h) of float32 or float64, and a head for every thread, the kernel
// works in place: without copies, and adding to the result itself, which is set to zero before.
// Each thread owns neighbouring heads, and takes all of them query by query.
//
// A whole head takes one pass over its samples. A shared head takes two: one for the dots, split by
// queries, and one for the scatter, split by rows of grad_value, so that only one thread adds to
// any row.
#pragma once

#include "cpu/packed_heads.h"
#include "cpu/prefault.h"
#include "cpu/sample_grads.h"
#include "cpu/threads.h"

namespace stdeform {
namespace {

template <class T, int N>
class BackwardKernel {
  using Real = Compute<T>;
  static constexpr bool kResultHoldsSums = std::is_same_v<T, Real>;

  // The working memory of one thread.
  struct Scratch {
    explicit Scratch(const BackwardKernel& kernel)
        : reader(kernel.p_, kernel.table_),
          grads(kernel.p_, kernel.table_, kernel.head_reference_.get()),
          grad_out(new Real[kernel.vectors_ * kLanes<Real>]()),
          unused(new Real[kernel.p_.D]()) {}
    SampleReader<Real, N> reader;
    SampleGrads<Real, N> grads;
    Chunk<Real, N> chunk;
    Dots<Real, N> dots;
    std::unique_ptr<Real[]> grad_out;  // [D], padded with zeros to whole vectors
    std::unique_ptr<Real[]> unused;    // [D], in place: the gradient outside the volume
  };

 public:
  explicit BackwardKernel(const Problem& p)
      : p_(p),
        partition_(p),
        table_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        is_in_place_(kResultHoldsSums && has_few_samples<Real>(p) &&
                     p.B * p.M >= partition_.num_threads()),
        needs_dots_(p.grad_positions.data || p.grad_scores.data || p.grad_reference.data),
        needs_scatter_(p.grad_value.data),
        head_reference_(p.grad_reference.data
                            ? new Real[p.B * p.M * p.Q * p.L * table_.reference_width]
                            : nullptr),
        zeros_(new T[p.D]()),
        values_(needs_dots_ && !is_in_place_ ? partition_.num_copies() : 0, p.S, p.D, vectors_),
        grad_values_(needs_scatter_ && !is_in_place_ ? partition_.num_copies() : 0, p.S, p.D,
                     vectors_) {
    will_write(p.grad_value, p.B * p.S * p.M * p.D);
    will_write(p.grad_positions, p.B * p.Q * p.M * table_.count * N);
    will_write(p.grad_scores, p.B * p.Q * p.M * table_.count);
  }

  void run() {
    partition_.run([this] {
      prefault_.run();  // 1 prefault
      Scratch scratch(*this);
      if (is_in_place_) {
        if constexpr (kResultHoldsSums) run_in_place(scratch);
      } else {
        run_whole_heads(scratch);
        run_shared_heads(scratch);
      }
      if (head_reference_) sum_heads();
    });
  }

 private:
  void will_write(const Array& to, int64_t numbers) {
    prefault_.add(to.data, size_t(numbers) * size_of(to.dtype));
  }

  // Calls run(with dots, scatter), two constants, for what one pass over the samples computes.
  template <class F>
  void visit_needs(F run) const {
    if (!needs_scatter_) {
      run(std::true_type{}, ScatterConstant<Scatter::none>{});
    } else if (!needs_dots_) {
      run(std::false_type{}, ScatterConstant<Scatter::all>{});
    } else {
      run(std::true_type{}, ScatterConstant<Scatter::all>{});
    }
  }

  // The heads of a query after one another: they read cells near each other.
  void run_in_place(Scratch& scratch) {
    if (needs_scatter_) {
      const int64_t cell = p_.M * p_.D;
      partition_.for_each_range(p_.B * p_.S, 1, [&](int64_t begin, int64_t end) {
        zero(static_cast<Real*>(p_.grad_value.data) + begin * cell, (end - begin) * cell);
      });
    }
    const StridedRows<const T> value_rows = {p_.value.stride[1], zeros_.get()};
    const StridedRows<Real> grad_rows = {p_.M * p_.D, scratch.unused.get()};
    partition_.for_each_range(p_.B * p_.M, 1, [&](int64_t begin, int64_t end) {
      visit_needs([&](auto with_dots, auto scatter) {
        for (int64_t b = begin / p_.M; b * p_.M < end; ++b) {
          const int64_t first = std::max<int64_t>(begin - b * p_.M, 0);
          const int64_t last = std::min(end - b * p_.M, p_.M);
          for (int64_t q = 0; q < p_.Q; ++q)
            for (int64_t m = first; m < last; ++m) {
              const T* value = at<T>(p_.value, b, 0, m);
              Real* grad_value =
                  scatter == Scatter::none ? nullptr : at<Real>(p_.grad_value, b, 0, m);
              run_query<with_dots, scatter>(scratch, b, q, m, value, value_rows, grad_value,
                                            grad_rows, {});
            }
        }
      });
    });
  }

  void run_whole_heads(Scratch& scratch) {
    partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
      pack(head, copy, 0, p_.S);
      visit_needs([&](auto with_dots, auto scatter) {
        run_queries<with_dots, scatter>(scratch, head, copy, 0, p_.Q);
      });
      unpack(head, copy, 0, p_.S);
    });
  }

  void run_shared_heads(Scratch& scratch) {
    partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { pack(range...); });
    if (needs_dots_) {
      partition_.for_each_shared_range(
          p_.Q, 4, [&](auto... range) { run_queries<true, Scatter::none>(scratch, range...); });
    }
    if (needs_scatter_) {
      partition_.for_each_shared_range(
          p_.S, 1, [&](int64_t head, int64_t copy, int64_t begin, int64_t end) {
            const RowRange range = {begin * vectors_, end * vectors_};
            run_queries<false, Scatter::range>(scratch, head, copy, 0, p_.Q, range);
          });
    }
    partition_.for_each_shared_range(p_.S, 1, [&](auto... range) { unpack(range...); });
  }

  // 2 pack: cells [begin, end) of a head.
  void pack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (needs_dots_) {
      const T* value = at<T>(p_.value, head / p_.M, 0, head % p_.M);
      values_.pack(copy, value, p_.value.stride[1], begin, end);
    }
    if (needs_scatter_) grad_values_.zero(copy, begin, end);
  }

  // 8 unpack: cells [begin, end) of a head.
  void unpack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (!needs_scatter_) return;
    T* grad_value = at<T>(p_.grad_value, head / p_.M, 0, head % p_.M);
    grad_values_.unpack(copy, grad_value, p_.grad_value.stride[1], begin, end);
  }

  // One pass over the samples of queries [begin, end) of a head.
  template <bool with_dots, Scatter scatter>
  void run_queries(Scratch& scratch, int64_t head, int64_t copy, int64_t begin, int64_t end,
                   RowRange range = {}) {
    const int64_t b = head / p_.M, m = head % p_.M;
    const T* grad_out = at<T>(p_.grad_out, b, 0, m);                             // [Q, D]
    const T* value = with_dots ? values_[copy] : nullptr;                        // [S + 1, D]
    Real* grad_value = scatter == Scatter::none ? nullptr : grad_values_[copy];  // [S + 1, D]
    const int64_t grad_out_stride = p_.grad_out.stride[1];
    const PackedRows<Real> rows = {IntOf<Real>(vectors_), IntOf<Real>(p_.S * vectors_)};
    for (int64_t q = begin; q < end; ++q) {
      if (q + kPrefetch < end) {
        scratch.reader.prefetch(b, q + kPrefetch, m);
        prefetch<false>(grad_out + (q + kPrefetch) * grad_out_stride, p_.D);
        if (with_dots) scratch.grads.prefetch(b, q + kPrefetch, m);
      }
      run_query<with_dots, scatter>(scratch, b, q, m, value, rows, grad_value, rows, range);
    }
  }

  template <bool with_dots, Scatter scatter, class ValueRows, class GradRows>
  void run_query(Scratch& scratch, int64_t b, int64_t q, int64_t m, const T* value,
                 ValueRows value_rows, Real* grad_value, GradRows grad_rows, RowRange range) {
    Chunk<Real, N>& chunk = scratch.chunk;
    load_numbers(at<T>(p_.grad_out, b, q, m), p_.D, scratch.grad_out.get());
    const Real* attention = scratch.reader.begin(b, q, m);  // 3 begin
    if (with_dots) scratch.grads.begin_query();
    for (int64_t first = 0; first < table_.count; first += kChunk) {
      scratch.reader.read(b, q, m, first, value_rows, chunk);  // 4 read
      differentiate<with_dots, scatter>(value, value_rows, grad_value, grad_rows, vectors_,
                                        scratch.grad_out.get(), chunk, range,
                                        scratch.dots);                        // 5 differentiate
      if (with_dots) scratch.grads.add(b, q, m, first, chunk, scratch.dots);  // 6 add
    }
    if (with_dots) scratch.grads.finish_query(b, q, m, attention);  // 7 finish
  }

  // 9 sum heads: they share their reference points. Added in the order of the heads.
  void sum_heads() const {
    const int64_t width = p_.L * table_.reference_width;
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
  const bool is_in_place_, needs_dots_, needs_scatter_;
  const std::unique_ptr<Real[]> head_reference_;  // per head: [B, M, Q, L, N or 2N]
  const std::unique_ptr<T[]> zeros_;              // [D], in place: the row outside the volume
  PackedHeads<T> values_;
  PackedHeads<Real> grad_values_;
  Prefault prefault_;
};

}  // namespace
}  // namespace stdeform
