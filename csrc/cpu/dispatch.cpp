#include "cpu/dispatch.h"

#include <stdexcept>

namespace stdeform {
namespace {

const std::vector<const Level*>& levels() {
  static const std::vector<const Level*> usable = [] {
    std::vector<const Level*> found;
    for (const Level* level : {
#ifdef STDEFORM_LEVEL_AVX512
             &kAvx512,
#endif
#ifdef STDEFORM_LEVEL_AVX2
             &kAvx2,
#endif
             &kPortable,
         }) {
      if (level->usable()) found.push_back(level);
    }
    return found;
  }();
  return usable;
}

}  // namespace

std::vector<std::string> usable_levels() {
  std::vector<std::string> names;
  for (const Level* level : levels()) names.push_back(level->name);
  return names;
}

const Level& choose_level(const std::string& name) {
  for (const Level* level : levels())
    if (name.empty() || name == level->name) return *level;
  throw std::invalid_argument("SIMD level '" + name + "' is not usable here");
}

}  // namespace stdeform
