#include "cpu/isa.h"

#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace stdeform {

bool has_baseline() { return true; }

#ifdef __x86_64__
bool has_avx2() {
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  // Clang's __builtin_cpu_supports does not know "f16c".
  return (ecx & bit_F16C) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
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
