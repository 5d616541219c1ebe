// Backward kernel. ThreadPartition (threads/partition.h) says which thread works on which head.
//
//   1 prefault       populate the pages of large results             Prefault       prefault.h
//   For each head, which is one head of one batch element:
//   2 pack           copy its value, and zero its gradient           PackedHeads    packed_heads.h
//   For each block of queries:
//   3 read           scores -> attention weights                     QueryBlock     query_block.h
//   For each query of the block:
//   4 corners        positions -> corner rows, for a chunk           CornerFinder   corners.h
//   5 differentiate  dots: grad_out . row of each corner             differentiate  gather.h
//                    scatter: row of grad_value += weight * grad_out
//   6 add            dots -> gradients of positions and weights      SampleGrads    sample_grads.h
//   7 finish         through the softmax, to the gradient of scores  SampleGrads    sample_grads.h
//   For each block of queries:
//   8 write          the gradients of scores and positions           QueryBlock     query_block.h
//   For each head:
//   9 unpack         round the gradient of its value once            PackedHeads    packed_heads.h
//   For all heads:
//  10 sum heads      add their gradients of reference points         sum_heads
//
// With few samples (rows.h) of float32 or float64, and a head for every thread, the kernel
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
#include "cpu/threads/partition.h"

namespace stdeform {
namespace {

template <class T, int N>
class BackwardKernel {
  using Real = Compute<T>;
  static constexpr bool kResultHoldsSums = std::is_same_v<T, Real>;
  static constexpr int kOutside = 1 << N;  // rows outside the volume

  // The working memory of one thread.
  struct Scratch {
    Scratch(const BackwardKernel& kernel, int64_t max_heads)
        : block(kernel.p_, kernel.table_, max_heads),
          grads(kernel.p_, kernel.table_, kernel.head_reference_.get()),
          grad_out(new Real[kernel.vectors_ * kLanes<Real>]()),
          unused(new Real[kernel.p_.D << N]()) {}
    QueryBlock<Real, N> block;
    SampleGrads<Real, N> grads;
    GradChunk<Real, N> chunk;
    Dots<Real, N> dots;
    std::unique_ptr<Real[]> grad_out;  // [D], padded with zeros to whole vectors
    std::unique_ptr<Real[]> unused;    // [2^N, D], in place: the gradient outside the volume
  };

 public:
  explicit BackwardKernel(const Problem& p)
      : p_(p),
        partition_(p),
        vectors_((p.D + kLanes<Real> - 1) / kLanes<Real>),
        is_in_place_(kResultHoldsSums && has_few_samples<Real>(p) &&
                     p.B * p.M >= partition_.num_threads()),
        numbers_(p, !is_in_place_),
        table_(p, numbers_, is_in_place_ ? 1 : vectors_),
        finder_(p, table_),
        needs_dots_(p.grad_positions.data || p.grad_scores.data || p.grad_reference.data),
        needs_scatter_(p.grad_value.data),
        head_reference_(p.grad_reference.data
                            ? new Real[p.B * p.M * p.Q * p.L * table_.reference_width]
                            : nullptr),
        zeros_(new T[p.D]()),
        values_(needs_dots_ && !is_in_place_ ? partition_.num_copies() : 0, numbers_, kOutside, p.D,
                vectors_),
        grad_values_(needs_scatter_ && !is_in_place_ ? partition_.num_copies() : 0, numbers_,
                     kOutside, p.D, vectors_) {
    will_write(p.grad_value, p.B * p.S * p.M * p.D);
    will_write(p.grad_positions, p.B * p.Q * p.M * table_.count * N);
    will_write(p.grad_scores, p.B * p.Q * p.M * table_.count);
  }

  void run() {
    partition_.run([this] {
      prefault_.run();  // 1 prefault
      Scratch scratch(*this, is_in_place_ ? p_.M : 1);
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
      partition_.for_each_range(p_.B * p_.S, 1, [&](auto... range) { zero_result(range...); });
    }
    const StridedRows<const T> value_rows = {p_.value.stride[1], zeros_.get(), 0};
    const StridedRows<Real> grad_rows = {p_.M * p_.D, scratch.unused.get(), p_.D};
    partition_.for_each_range(p_.B * p_.M, 1, [&](int64_t begin, int64_t end) {
      visit_needs([&](auto with_dots, auto scatter) {
        for (int64_t b = begin / p_.M; b * p_.M < end; ++b) {
          const int64_t first = std::max<int64_t>(begin - b * p_.M, 0);
          const int64_t last = std::min(end - b * p_.M, p_.M);
          scratch.block.for_each(0, p_.Q, [&](int64_t q_begin, int64_t q_end) {
            scratch.block.read({b, first, last - first}, q_begin, q_end);  // 3 read
            const auto place = [&](int64_t i) {
              return QueryHead{q_begin + i / (last - first), first + i % (last - first)};
            };
            differentiate_queries<with_dots, scatter>(
                scratch, b, (q_end - q_begin) * (last - first), place, value_rows,
                [&](int64_t m) { return at<T>(p_.value, b, 0, m); }, grad_rows,
                [&](int64_t m) {
                  return scatter == Scatter::none ? nullptr : at<Real>(p_.grad_value, b, 0, m);
                },
                {});
            if (with_dots) scratch.block.write_grads(q_begin, q_end);  // 8 write
          });
        }
      });
    });
  }

  // Cells [begin, end) of all heads. Not past the cache: the scatter would wait for memory.
  void zero_result(int64_t begin, int64_t end) {
    const int64_t cell = p_.M * p_.D;
    std::fill_n(static_cast<Real*>(p_.grad_value.data) + begin * cell, (end - begin) * cell,
                Real(0));
  }

  void run_whole_heads(Scratch& scratch) {
    partition_.for_each_whole_head([&](int64_t head, int64_t copy) {
      pack(head, copy, 0, numbers_.count());
      visit_needs([&](auto with_dots, auto scatter) {
        run_queries<with_dots, scatter>(scratch, head, copy, 0, p_.Q);
      });
      unpack(head, copy, 0, numbers_.count());
    });
  }

  void run_shared_heads(Scratch& scratch) {
    partition_.for_each_shared_range(numbers_.count(), 1, [&](auto... range) { pack(range...); });
    if (needs_dots_) {
      partition_.for_each_shared_range(
          p_.Q, 4, [&](auto... range) { run_queries<true, Scatter::none>(scratch, range...); });
    }
    if (needs_scatter_) {
      partition_.for_each_shared_range(
          numbers_.count(), 1, [&](int64_t head, int64_t copy, int64_t begin, int64_t end) {
            const RowRange range = {begin * vectors_, end * vectors_};
            run_queries<false, Scatter::range>(scratch, head, copy, 0, p_.Q, range);
          });
    }
    partition_.for_each_shared_range(numbers_.count(), 1, [&](auto... range) { unpack(range...); });
  }

  // 2 pack: rows [begin, end) of a head.
  void pack(int64_t head, int64_t copy, int64_t begin, int64_t end) {
    if (needs_dots_) {
      const T* value = at<T>(p_.value, head / p_.M, 0, head % p_.M);
      values_.pack(copy, value, p_.value.stride[1], begin, end);
    }
    if (needs_scatter_) grad_values_.zero(copy, begin, end);
  }

  // 9 unpack: rows [begin, end) of a head.
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
    const T* value = with_dots ? values_[copy] : nullptr;
    Real* grad_value = scatter == Scatter::none ? nullptr : grad_values_[copy];
    const PackedRows<Real> rows = {vectors_, numbers_.count()};
    scratch.block.for_each(begin, end, [&](int64_t first, int64_t last) {
      scratch.block.read({b, m, 1}, first, last);  // 3 read
      const auto place = [&](int64_t i) { return QueryHead{first + i, m}; };
      differentiate_queries<with_dots, scatter>(
          scratch, b, last - first, place, rows, [&](int64_t) { return value; }, rows,
          [&](int64_t) { return grad_value; }, range);
      if (with_dots) scratch.block.write_grads(first, last);  // 8 write
    });
  }

  // `count` queries and heads. `value_of(m)` and `grad_value_of(m)`: [S, D], of head m.
  template <bool with_dots, Scatter scatter, class Place, class ValueRows, class ValueOf,
            class GradRows, class GradValueOf>
  void differentiate_queries(Scratch& scratch, int64_t b, int64_t count, Place place,
                             ValueRows value_rows, ValueOf value_of, GradRows grad_rows,
                             GradValueOf grad_value_of, RowRange range) {
    Real* grad_out = scratch.grad_out.get();
    Real outside = 0;
    finder_.for_each_chunk(  // 4 corners
        scratch.block, count, place, value_rows, scratch.chunk,
        [&](QueryHead i, const GradChunk<Real, N>& chunk) {
          if (chunk.first == 0) {
            load_numbers(at<T>(p_.grad_out, b, i.q, i.m), p_.D, grad_out);
            const int64_t ahead = std::min(i.q + kPrefetch, p_.Q - 1);
            prefetch<false>(at<T>(p_.grad_out, b, ahead, i.m), p_.D);
            outside = dot_with_zero(grad_out);
            if (with_dots) scratch.grads.begin_query();
          }
          if (with_dots) scratch.dots.fill(chunk, outside);
          differentiate<with_dots, scatter>(value_of(i.m), value_rows, grad_value_of(i.m),
                                            grad_rows, vectors_, grad_out, chunk, range,
                                            scratch.dots);  // 5 differentiate
          if (!with_dots) return;
          scratch.grads.add(chunk, scratch.dots, scratch.block.positions(i));  // 6 add
          if (chunk.is_last) {
            scratch.grads.finish_query(b, i.q, i.m, scratch.block.attention(i));  // 7 finish
          }
        });
  }

  // What the dot product with a row outside the volume is: 0, or NaN.
  Real dot_with_zero(const Real* grad_out) const {
    Vector<Real> sum = {};
    for (int64_t v = 0; v < vectors_; ++v) sum += load(grad_out + v * kLanes<Real>) * Real(0);
    return reduce<kLanes<Real>>(sum, [](auto a, auto b) { return a + b; });
  }

  // 10 sum heads: they share their reference points. Added in the order of the heads.
  void sum_heads() const {
    const int64_t width = p_.L * table_.reference_width;
    partition_.for_each_range(p_.B * p_.Q, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Real* first = head_reference_.get() + (i / p_.Q * p_.M * p_.Q + i % p_.Q) * width;
        for (int64_t r = 0; r < width; ++r) {
          Real sum = 0;
          for (int64_t m = 0; m < p_.M; ++m) sum += first[m * p_.Q * width + r];
          visit_dtype(p_.grad_reference.dtype, [&](auto zero) {
            store_numbers(&sum, 1,
                          static_cast<decltype(zero)*>(p_.grad_reference.data) + i * width + r);
          });
        }
      }
    });
  }

  const Problem& p_;
  const ThreadPartition partition_;
  const int64_t vectors_;  // per row, the last one padded
  const bool is_in_place_;
  const RowNumbers numbers_;
  const SampleTable<Real, N> table_;
  const CornerFinder<Real, N> finder_;
  const bool needs_dots_, needs_scatter_;
  const std::unique_ptr<Real[]> head_reference_;  // per head: [B, M, Q, L, N or 2N]
  const std::unique_ptr<T[]> zeros_;              // [D], in place: the row outside the volume
  PackedHeads<T> values_;
  PackedHeads<Real> grad_values_;
  Prefault prefault_;
};

}  // namespace
}  // namespace stdeform
