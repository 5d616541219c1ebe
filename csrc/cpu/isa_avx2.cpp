// The kernels for AVX2 with FMA, F16C, BMI and BMI2 (Haswell, Zen and newer).
#define STDEFORM_VECTOR_BYTES 32
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
const Isa kAvx2 = {"avx2", has_avx2, isa_forward, isa_backward};
}  // namespace stdeform
