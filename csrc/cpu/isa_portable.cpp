// The kernels in the baseline instruction set of the target: SSE2 on x86-64, NEON on ARM.
#define STDEFORM_VECTOR_BYTES 16
#include "cpu/entry.h"
#include "cpu/isa.h"

namespace stdeform {
const Isa kPortable = {"portable", has_baseline, isa_forward, isa_backward};
}  // namespace stdeform
