// The kernels for AVX2 with FMA and F16C (Haswell, Zen and newer).
#define STDEFORM_VECTOR_BYTES 32
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
static bool usable() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
const Level kAvx2 = {"avx2", usable, forward, backward};
}  // namespace stdeform
