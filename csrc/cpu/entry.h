// Forward and backward of one instruction set: who works on what, in which order.
//
// A unit is one batch row and head. Whole units go to one thread each, which keeps a packed copy
// of the unit's value in its cache; the units left over, fewer than the threads, are worked on by
// all threads together, split by queries (forward, dots) or by rows of the gradient (scatter).
// Each sum is formed in the same order either way, so results do not depend on the threads.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace stdeform {
namespace {

// Calls run(zero of the value's type, number of axes as a constant).
template <class F>
void dispatch(const Problem& p, F run) {
  visit_dtype(p.value.dtype, [&](auto zero) {
    if (p.N == 3) {
      run(zero, std::integral_constant<int, 3>{});
    } else {
      run(zero, std::integral_constant<int, 2>{});
    }
  });
}

void forward(const Problem& p) {
  dispatch(p, [&](auto zero, auto axes) { run_forward<decltype(zero), axes>(p); });
}

void backward(const Problem& p) {
  dispatch(p, [&](auto zero, auto axes) { Backward<decltype(zero), axes>(p).run(); });
}

}  // namespace
}  // namespace stdeform
