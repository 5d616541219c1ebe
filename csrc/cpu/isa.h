// The SIMD levels: the same kernels compiled for several instruction sets, chosen at run time.
#pragma once

#include "core/problem.h"

namespace stdeform {

struct Level {
  const char* name;
  bool (*usable)();  // does this processor have the instructions?
  void (*forward)(const Problem&);
  void (*backward)(const Problem&);
};

extern const Level kPortable, kAvx2, kAvx512;  // of those, the ones that were compiled

}  // namespace stdeform
