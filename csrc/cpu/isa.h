// Instruction sets: the same kernels are compiled for several of them, and one is chosen at run
// time.
#pragma once

#include <string>
#include <vector>

#include "core/problem.h"

namespace stdeform {

struct Isa {
  const char* name;
  bool (*is_usable)();  // whether this processor has the instructions
  void (*forward)(const Problem&);
  void (*backward)(const Problem&);
};

// Whether this processor has what ISA_FLAGS in setup.py compiles isa_<name>.cpp for. Not defined in
// those files: none of their instructions may run before it is known.
bool has_baseline();
bool has_avx2();
bool has_avx512();

// isa_<name>.cpp defines each; those not compiled have no definition.
extern const Isa kPortable, kAvx2, kAvx512;

// Names of the instruction sets that were compiled and that this processor has, fastest first.
std::vector<std::string> usable_isas();

// The named instruction set; the fastest for an empty name. Throws std::invalid_argument if it is
// not usable.
const Isa& choose_isa(const std::string& name);

}  // namespace stdeform
