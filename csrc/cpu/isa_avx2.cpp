// The kernels for AVX2 with FMA and F16C (Haswell, Zen and newer).
#define STDEFORM_VECTOR_BYTES 32
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
static bool is_usable() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
const Isa kAvx2 = {"avx2", is_usable, isa_forward, isa_backward};
}  // namespace stdeform
