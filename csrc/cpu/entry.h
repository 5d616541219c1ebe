// The kernels of one instruction set: a call goes to the kernel for its dtype and number of axes.
//
// Every sum is formed in the same order for any number of threads, so results do not depend on it.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace stdeform {
namespace {

// Calls run(zero of the value's type, number of axes as a constant).
template <class F>
void visit_dtype_and_axes(const Problem& p, F run) {
  visit_dtype(p.value.dtype, [&](auto zero) {
    if (p.N == 3) {
      run(zero, std::integral_constant<int, 3>{});
    } else {
      run(zero, std::integral_constant<int, 2>{});
    }
  });
}

void isa_forward(const Problem& p) {
  visit_dtype_and_axes(p,
                       [&](auto zero, auto axes) { run_forward_kernel<decltype(zero), axes>(p); });
}

void isa_backward(const Problem& p) {
  visit_dtype_and_axes(
      p, [&](auto zero, auto axes) { BackwardKernel<decltype(zero), axes>(p).run(); });
}

}  // namespace
}  // namespace stdeform
