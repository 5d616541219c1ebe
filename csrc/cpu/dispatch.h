// Which SIMD level runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/isa.h"

namespace stdeform {

// Names of the levels that were compiled and that this processor has, best first.
std::vector<std::string> usable_levels();

// The named level, or the best for an empty name. Throws std::invalid_argument if it is not usable.
const Level& choose_level(const std::string& name);

}  // namespace stdeform
