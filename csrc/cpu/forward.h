// The forward kernel.
#pragma once

#include "rows.h"
#include "slices.h"
#include "team.h"

namespace stdeform {
namespace {

template <class T, int N, class Offset>
class Forward {
  using Real = Compute<T>;

  // What one thread works with.
  struct Scratch {
    explicit Scratch(const Forward& f)
        : reader(f.p_, f.table_), sum(new Real[f.packed_stride_]) {}
    SampleReader<Real, N> reader;
    Chunk<Real, N, Offset> chunk;
    std::unique_ptr<Real[]> sum;  // [D], padded
  };

 public:
  Forward(const Problem& p, bool packed)
      : p_(p),
        team_(p),
        table_(p),
        packed_stride_(round_up(p.D, kLanes<Real>)),
        packed_(packed),
        zeros_(new T[packed_stride_]()),
        values_(packed_ ? team_.num_slices() : 0, p.S, p.D, packed_stride_) {}

  void run() {
#pragma omp parallel num_threads(team_.threads()) if (team_.threads() > 1)
    {
      Scratch scratch(*this);
      team_.for_each_whole_unit([&](int64_t unit, int64_t slice) {
        pack(unit, slice, 0, p_.S);
        attend(scratch, unit, slice, 0, p_.Q);
      });
      team_.for_each_part_of_rest(p_.S, team_.parts(1), [&](auto... part) { pack(part...); });
      team_.for_each_part_of_rest(p_.Q, team_.parts(4),
                                  [&](auto... part) { attend(scratch, part...); });
    }
  }

 private:
  const T* unit_value(int64_t unit) const {
    const int64_t* s = p_.value.stride;
    return static_cast<const T*>(p_.value.data) + unit / p_.M * s[0] + unit % p_.M * s[2];
  }

  void pack(int64_t unit, int64_t slice, int64_t begin, int64_t end) {
    if (packed_) values_.pack(slice, unit_value(unit), p_.value.stride[1], begin, end);
  }

  void attend(Scratch& scratch, int64_t unit, int64_t slice, int64_t begin, int64_t end) {
    const int64_t b = unit / p_.M, m = unit % p_.M;
    const T* rows = packed_ ? values_[slice] : unit_value(unit);
    const RowLayout<Offset> layout =
        packed_ ? RowLayout<Offset>{Offset(packed_stride_), Offset(p_.S * packed_stride_)}
                : RowLayout<Offset>{Offset(p_.value.stride[1]), distance(rows, zeros_.get())};
    const int64_t* s = p_.out.stride;
    Real* sum = scratch.sum.get();
    for (int64_t q = begin; q < end; ++q) {
      if (q + kPrefetch < end) scratch.reader.prefetch(b, q + kPrefetch, m);
      scratch.reader.begin(b, q, m);
      std::fill(sum, sum + packed_stride_, Real(0));
      for (int64_t first = 0; first < table_.count; first += kChunk) {
        scratch.reader.read(b, q, m, first, layout, scratch.chunk);
        gather(rows, packed_stride_ / kLanes<Real>, scratch.chunk, sum);
      }
      store_row(sum, p_.D, static_cast<T*>(p_.out.data) + b * s[0] + q * s[1] + m * s[2]);
    }
  }

  // In elements, between arrays that are not one: both are aligned to their element.
  static Offset distance(const T* from, const T* to) {
    return Offset((reinterpret_cast<intptr_t>(to) - reinterpret_cast<intptr_t>(from)) /
                  intptr_t(sizeof(T)));
  }

  const Problem& p_;
  const Team team_;
  const SampleTable<Real, N> table_;
  const int64_t packed_stride_;  // D, rounded up to whole vectors
  const bool packed_;
  const std::unique_ptr<T[]> zeros_;  // what a corner outside the volume reads
  Slices<T> values_;
};

template <class T, int N>
void run_forward(const Problem& p) {
  using Real = Compute<T>;
  // With few samples, packing would cost more than the reads. These go to the value itself then,
  // which needs rows of whole vectors and, for the distance to the row of zeros, long offsets.
  const bool whole_vectors = p.D % kLanes<Real> == 0;
  const bool packed = !whole_vectors || p.Q * p.L * p.K * (1 << N) > 2 * p.S;
  if (packed && offsets_fit<Real>(p)) {
    Forward<T, N, IntOf<Real>>(p, packed).run();
  } else {
    Forward<T, N, int64_t>(p, packed).run();
  }
}

}  // namespace
}  // namespace stdeform
