#include "cpu/isa.h"

#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace stdeform {

bool has_baseline() { return true; }

#ifdef __x86_64__
namespace {

// Not __builtin_cpu_supports: it knows the instructions only if the compiler's runtime library asks
// the processor when the module is loaded, and Zig's does not.
struct Processor {
  unsigned leaf1_ecx = 0, leaf7_ebx = 0, saved_registers = 0;

  Processor() {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) leaf1_ecx = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) leaf7_ebx = ebx;
    // Of XCR0: what the system saves when it switches threads.
    if (leaf1_ecx & bit_OSXSAVE) __asm__("xgetbv" : "=a"(saved_registers), "=d"(edx) : "c"(0));
#ifdef __APPLE__
    saved_registers |= kZmm;  // macOS saves them from a thread's first use of them
#endif
  }

  bool has(unsigned in_leaf1, unsigned in_leaf7, unsigned registers) const {
    return !(in_leaf1 & ~leaf1_ecx) && !(in_leaf7 & ~leaf7_ebx) && !(registers & ~saved_registers);
  }

  static constexpr unsigned kYmm = 0x06, kZmm = 0xe0;
};

const Processor& processor() {
  static const Processor here;
  return here;
}

}  // namespace

bool has_avx2() {
  return processor().has(bit_AVX | bit_FMA | bit_F16C, bit_AVX2 | bit_BMI | bit_BMI2,
                         Processor::kYmm);
}

bool has_avx512() {
  return has_avx2() && processor().has(0, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ,
                                       Processor::kZmm);
}
#endif

namespace {

const std::vector<const Isa*>& isas() {
  static const std::vector<const Isa*> usable = [] {
    std::vector<const Isa*> found;
    for (const Isa* isa : {
#ifdef STDEFORM_ISA_AVX512
             &kAvx512,
#endif
#ifdef STDEFORM_ISA_AVX2
             &kAvx2,
#endif
             &kPortable,
         }) {
      if (isa->is_usable()) found.push_back(isa);
    }
    return found;
  }();
  return usable;
}

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa* isa : isas()) names.push_back(isa->name);
  return names;
}

const Isa& choose_isa(const std::string& name) {
  for (const Isa* isa : isas())
    if (name.empty() || name == isa->name) return *isa;
  throw std::invalid_argument("instruction set '" + name + "' is not usable here");
}

}  // namespace stdeform
