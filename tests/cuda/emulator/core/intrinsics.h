// Device functions that CUDA's headers do not define for the host, as far as the kernels call them.
#pragma once

#include <cmath>

#include "thread.h"

// Caches are not emulated: a hint changes nothing.
template <class T>
EMULATED_DEVICE T __ldg(const T* address) {
  return *address;
}

#define EMULATED_MIN_MAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
