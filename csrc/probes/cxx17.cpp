// Whether the compiler knows the language of the native core, and links the C++ library to it:
// C++17, and vectors with conversions (g++ 9 and newer).
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));

template <class T>
std::string name_of(T x) {
  if constexpr (std::is_same_v<T, int>) return std::to_string(x);
  throw std::invalid_argument("not a whole number");
}

int main() {
  const Ints converted = __builtin_convertvector(Floats{1, 2, 3, 4}, Ints);
  const std::vector<std::string> names(2, name_of(int(converted[1])));
  return *std::make_unique<int>(int(names.size()));
}
