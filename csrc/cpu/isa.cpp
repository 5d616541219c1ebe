#include "cpu/isa.h"

#include <stdexcept>

namespace stdeform {
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
