// The kernels for AVX-512 F, BW, VL and DQ, besides AVX2's (Skylake-X, Zen 4 and newer).
#define STDEFORM_VECTOR_BYTES 64
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
const Isa kAvx512 = {"avx512", has_avx512, isa_forward, isa_backward};
}  // namespace stdeform
