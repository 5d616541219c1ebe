// Vectorised softmax over the P logits of one query and head.
#pragma once

#include <cmath>

#include "cpu/simd.h"

namespace stdeform {
namespace {

// e^x for x <= 0; NaN for NaN. Results below 2^-126 become zero, which a softmax can afford.
inline Vector<float> exp_of_nonpositive(Vector<float> x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const float log2_e = 1.44269504f;
  const float ln2_high = 0.693145752f, ln2_low = 1.42860682e-6f;  // ln 2 in two parts
  const float round = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  const Vector<float> n = (x * log2_e + round) - round;
  const Vector<float> r = (x - n * ln2_high) - n * ln2_low;  // |r| <= ln 2 / 2
  // Taylor series; the first term left out, r^8 / 8!, is below 6e-9.
  Vector<float> e = r * (1.0f / 5040) + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Ints underflows = x < -87.0f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  const Vector<float> scaled = e * reinterpret_cast<Vector<float>>(bits);
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Ints>(scaled) & ~underflows);
}
inline Vector<double> exp_of_nonpositive(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// In place. `x` has n elements padded to whole vectors; the padding is overwritten.
template <class Real>
inline void softmax(Real* x, int64_t n) {
  const int64_t padded = round_up(n, kLanes<Real>);
  for (int64_t i = n; i < padded; ++i) x[i] = -Real(INFINITY);
  const auto larger = [](Vector<Real> a, Vector<Real> b) { return a > b ? a : b; };
  Vector<Real> maxima = load(x);
  for (int64_t i = kLanes<Real>; i < padded; i += kLanes<Real>)
    maxima = larger(load(x + i), maxima);
  const Real maximum = reduce<kLanes<Real>>(maxima, larger);
  Vector<Real> sums = {};
  for (int64_t i = 0; i < padded; i += kLanes<Real>) {
    const Vector<Real> e = exp_of_nonpositive(load(x + i) - maximum);
    store(x + i, e);
    sums += e;
  }
  const auto plus = [](Vector<Real> a, Vector<Real> b) { return a + b; };
  const Real scale = Real(1) / reduce<kLanes<Real>>(sums, plus);
  for (int64_t i = 0; i < padded; i += kLanes<Real>) store(x + i, load(x + i) * scale);
}

}  // namespace
}  // namespace stdeform
