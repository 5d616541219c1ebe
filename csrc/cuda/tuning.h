// What tests and benchmarks may force. Results do not depend on it, but for the order in which the
// gradient of the value is summed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace stdeform::cuda {

// Negative: the kernels choose.
struct Tuning {
  int64_t backward_sorted = -1;  // whether the gradient of the value is summed cell by cell
};

// Sets a field by its name; throws std::invalid_argument if there is none of that name.
inline void set(Tuning& tuning, const std::string& name, int64_t to) {
  struct Field {
    const char* name;
    int64_t Tuning::* at;
  };
  constexpr Field kFields[] = {
      {"backward_sorted", &Tuning::backward_sorted},
  };
  for (const Field& field : kFields) {
    if (name == field.name) return void(tuning.*field.at = to);
  }
  throw std::invalid_argument("the CUDA kernels have no tuning \"" + name + "\"");
}

}  // namespace stdeform::cuda
