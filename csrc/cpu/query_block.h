// The samples of a block of queries, for neighbouring heads: attention weights, positions and
// reference points, copied from the caller's arrays to where they are read head by head.
//
// In those arrays the queries of a head lie far apart. While rows are read at the same time, few of
// the accesses overlap; in a loop that only copies, many do. The gradients take the same way back.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/sample_table.h"
#include "cpu/softmax.h"

namespace stdeform {
namespace {

// How many queries ahead the rows of a head in the result, or in its gradient, are prefetched.
constexpr int kPrefetch = 4;

// Neighbouring heads of one batch element.
struct HeadRange {
  int64_t b, first, count;
};

// A query, and a head of a batch element.
struct QueryHead {
  int64_t q, m;
};

template <class Real, int N>
class QueryBlock {
  static constexpr int64_t kBytes = 128 << 10;  // a share of the L2 cache
  static constexpr int64_t kMaxQueries = 64;

 public:
  // `max_heads`: of a range.
  QueryBlock(const Problem& p, const SampleTable<Real, N>& table, int64_t max_heads)
      : p_(p),
        table_(table),
        samples_(round_up(table.count, kLanes<Real>)),
        capacity_(
            std::clamp<int64_t>(kBytes / (max_heads * samples_ * (N + 1) * int64_t(sizeof(Real))),
                                1, std::min(kMaxQueries, p.Q))),
        is_far_(max_heads == 1 && p.positions.stride[1] * size_of(p.positions.dtype) > kFar),
        is_large_(p.B * p.Q * p.M * p.P * int64_t(sizeof(Real)) >= kLarge),
        attention_(new Real[max_heads * capacity_ * samples_]()),
        positions_(new Real[max_heads * capacity_ * samples_ * N]()),
        reference_(p.reference.data ? new Real[capacity_ * p.L * table.reference_width] : nullptr) {
  }

  // Calls f(begin, end) for blocks of the queries [begin, end).
  template <class F>
  void for_each(int64_t begin, int64_t end, F f) const {
    for (; begin < end; begin += capacity_) f(begin, std::min(begin + capacity_, end));
  }

  // Reads queries [begin, end), at most a block.
  void read(HeadRange heads, int64_t begin, int64_t end) {
    heads_ = heads, begin_ = begin;
    for (int64_t q = begin; q < end; ++q) {
      for (int64_t m = heads.first; m < heads.first + heads.count; ++m) {
        read_scores(q, m);
        read_positions(q, m);
      }
      if (reference_) read_reference(q);
    }
    if (!reference_) return;
    // After all of them are read: a processor may take a load for one that needs the result of a
    // store just before, and a softmax takes long to be stored.
    for (int64_t m = heads.first; m < heads.first + heads.count; ++m)
      for (int64_t q = begin; q < end; ++q) softmax(attention({q, m}), table_.count);
  }

  // Writes what the kernel has put in the place of attention weights and positions to the gradients
  // of scores and positions, as far as they are requested.
  void write_grads(int64_t begin, int64_t end) const {
    for (int64_t q = begin; q < end; ++q)
      for (int64_t m = heads_.first; m < heads_.first + heads_.count; ++m) {
        const int64_t sample = ((heads_.b * p_.Q + q) * p_.M + m) * table_.count;
        write_numbers(p_.grad_scores, sample, attention({q, m}), table_.count);
        write_numbers(p_.grad_positions, sample * N, positions({q, m}), table_.count * N);
      }
    if (is_large_) fence();
  }

  // Prefetches what the next block will read in the place of this query and head.
  STDEFORM_INLINE void prefetch_next(QueryHead i) const {
    const int64_t q = i.q + capacity_;
    if (!is_far_ || q >= p_.Q) return;
    prefetch_record(p_.positions, q, i.m, table_.count * N);
    prefetch_record(p_.scores, q, i.m, table_.count);
  }

  // Of a query and head: [P] and [P, N], both padded to whole vectors of samples.
  Real* attention(QueryHead i) const { return &attention_[slot(i) * samples_]; }
  Real* positions(QueryHead i) const { return &positions_[slot(i) * samples_ * N]; }
  // Of a query: [L, N or 2N]; null if there are none.
  const Real* reference(int64_t q) const {
    return reference_ ? &reference_[(q - begin_) * p_.L * table_.reference_width] : nullptr;
  }

 private:
  // Where queries are further apart, in bytes, few are on a page, and the processor's prediction
  // ends with it.
  static constexpr int64_t kFar = 1024;
  static constexpr int64_t kLarge = 4 << 20;  // bytes of the gradient of the scores

  STDEFORM_INLINE void prefetch_record(const Array& a, int64_t q, int64_t m, int64_t n) const {
    const int64_t first = heads_.b * a.stride[0] + q * a.stride[1] + m * a.stride[2];
    const char* from = static_cast<const char*>(a.data) + first * size_of(a.dtype);
    for (int64_t i = 0; i < n * size_of(a.dtype); i += 64) __builtin_prefetch(from + i, 0, 2);
  }

  // Writes `n` numbers from element `at` of a contiguous array, if there is one.
  void write_numbers(const Array& to, int64_t at, const Real* from, int64_t n) const {
    if (!to.data) return;
    visit_dtype(to.dtype, [&](auto zero) {
      using T = decltype(zero);
      T* first = static_cast<T*>(to.data) + at;
      if constexpr (std::is_same_v<T, Real> && std::is_same_v<Real, float>) {
        // Whole lines of the cache only.
        if (is_large_ && n % 16 == 0 && reinterpret_cast<uintptr_t>(first) % 64 == 0) {
          for (int64_t i = 0; i < n; i += kLanes<float>) stream(first + i, load(from + i));
          return;
        }
      }
      store_numbers(from, n, first);
    });
  }

  int64_t slot(QueryHead i) const { return (i.m - heads_.first) * capacity_ + i.q - begin_; }

  void read_scores(int64_t q, int64_t m) const {
    Real* to = attention({q, m});
    visit_dtype(p_.scores.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t stride = p_.scores.stride[3];
      const T* from = at<T>(p_.scores, heads_.b, q, m);  // [P]
      if (stride == 1) {
        load_numbers(from, table_.count, to);
      } else {
        for (int64_t i = 0; i < table_.count; ++i) to[i] = Real(to_real(from[i * stride]));
      }
    });
  }

  void read_positions(int64_t q, int64_t m) const {
    Real* to = positions({q, m});
    visit_dtype(p_.positions.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.positions.stride;
      const T* from = at<T>(p_.positions, heads_.b, q, m);  // [P, N]
      if (s[4] == 1 && s[3] == N) {
        load_numbers(from, table_.count * N, to);
      } else {
        for (int64_t i = 0; i < table_.count; ++i)
          for (int n = 0; n < N; ++n) to[i * N + n] = Real(to_real(from[i * s[3] + n * s[4]]));
      }
    });
  }

  void read_reference(int64_t q) const {
    const int width = table_.reference_width;
    Real* to = &reference_[(q - begin_) * p_.L * width];
    visit_dtype(p_.reference.dtype, [&](auto zero) {
      using T = decltype(zero);
      const int64_t* s = p_.reference.stride;
      const T* from = at<T>(p_.reference, heads_.b, q, 0);  // [L, N or 2N]
      for (int64_t l = 0; l < p_.L; ++l)
        for (int r = 0; r < width; ++r)
          to[l * width + r] = Real(to_real(from[l * s[2] + r * s[3]]));
    });
  }

  const Problem& p_;
  const SampleTable<Real, N>& table_;
  const int64_t samples_, capacity_;  // P padded, and queries
  const bool is_far_;
  const bool is_large_;                      // the cache would keep little of the gradients
  const std::unique_ptr<Real[]> attention_;  // [head, query, samples_]
  const std::unique_ptr<Real[]> positions_;  // [head, query, samples_, N]
  const std::unique_ptr<Real[]> reference_;  // [query, L, N or 2N]
  HeadRange heads_ = {};
  int64_t begin_ = 0;  // the first query
};

}  // namespace
}  // namespace stdeform
