// The kernels for AVX-512 F, BW, VL and DQ (Skylake-X, Zen 4 and newer).
#define STDEFORM_VECTOR_BYTES 64
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
static bool is_usable() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
const Isa kAvx512 = {"avx512", is_usable, isa_forward, isa_backward};
}  // namespace stdeform
