// Runs calls of the operator by the kernels in csrc/cpu: reads them from standard input and writes
// their results to standard output, as tests/cross/machines.py says. Its argument names the
// instruction set; without one it lists those that it can use.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

#include "cpu/isa.h"

namespace {

using stdeform::Array;
using stdeform::Problem;

bool try_read(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

void read(void* to, size_t bytes) {
  if (try_read(to, bytes)) return;
  std::fprintf(stderr, "the input ends within a call\n");
  std::exit(1);
}

int64_t read_number() {
  int64_t number;
  read(&number, sizeof number);
  return number;
}

std::vector<int64_t> read_numbers(int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t& number : numbers) number = read_number();
  return numbers;
}

// A contiguous array and its memory; begins as NaN.
struct Memory {
  std::vector<unsigned char> bytes;
  Array array;
};

// Reads a dtype, or -1 for no array.
Memory read_dtype(std::initializer_list<int64_t> sizes) {
  Memory made;
  const int64_t dtype = read_number();
  if (dtype < 0) return made;
  made.array.dtype = static_cast<stdeform::DType>(dtype);
  int64_t count = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    made.array.stride[axis] = count;
    count *= sizes.begin()[axis];
  }
  made.bytes.assign(static_cast<size_t>(count * size_of(made.array.dtype)), 0xff);
  made.array.data = made.bytes.data();
  return made;
}

Memory read_array(std::initializer_list<int64_t> sizes) {
  Memory made = read_dtype(sizes);
  read(made.bytes.data(), made.bytes.size());
  return made;
}

void write(const Memory& from) { std::fwrite(from.bytes.data(), 1, from.bytes.size(), stdout); }

void run_call(const stdeform::Isa& isa, bool is_backward) {
  Problem p;
  p.num_threads = static_cast<int>(read_number());
  p.use_all_threads = true;
  p.N = static_cast<int>(read_number());
  p.B = read_number(), p.S = read_number(), p.M = read_number(), p.D = read_number();
  p.Q = read_number(), p.L = read_number(), p.P = read_number();
  p.boxes = read_number();
  const std::vector<int64_t> num_points = read_numbers(p.L), shapes = read_numbers(p.L * p.N);
  p.num_points = num_points.data();
  p.spatial_shapes = shapes.data();

  const int64_t width = p.boxes ? 2 * p.N : p.N;
  const Memory value = read_array({p.B, p.S, p.M, p.D});
  const Memory reference = read_array({p.B, p.Q, p.L, width});
  const Memory positions = read_array({p.B, p.Q, p.M, p.P, p.N});
  const Memory scores = read_array({p.B, p.Q, p.M, p.P});
  p.value = value.array, p.reference = reference.array;
  p.positions = positions.array, p.scores = scores.array;
  if (!is_backward) {
    const Memory out = read_dtype({p.B, p.Q, p.M, p.D});
    p.out = out.array;
    isa.forward(p);
    write(out);
    return;
  }
  const Memory grad_out = read_array({p.B, p.Q, p.M, p.D});
  const Memory grad_value = read_dtype({p.B, p.S, p.M, p.D});
  const Memory grad_reference = read_dtype({p.B, p.Q, p.L, width});
  const Memory grad_positions = read_dtype({p.B, p.Q, p.M, p.P, p.N});
  const Memory grad_scores = read_dtype({p.B, p.Q, p.M, p.P});
  p.grad_out = grad_out.array;
  p.grad_value = grad_value.array, p.grad_reference = grad_reference.array;
  p.grad_positions = grad_positions.array, p.grad_scores = grad_scores.array;
  isa.backward(p);
  for (const Memory* grad : {&grad_value, &grad_reference, &grad_positions, &grad_scores})
    write(*grad);
}

}  // namespace

int main(int count, char** arguments) {
#ifdef _WIN32
  _setmode(_fileno(stdin), _O_BINARY);
  _setmode(_fileno(stdout), _O_BINARY);
#endif
  if (count == 1) {
    for (const std::string& name : stdeform::usable_isas()) std::printf("%s\n", name.c_str());
    return 0;
  }
  const stdeform::Isa& isa = stdeform::choose_isa(arguments[1]);
  int64_t is_backward;
  while (try_read(&is_backward, sizeof is_backward)) {
    run_call(isa, is_backward);
    std::fflush(stdout);
  }
}
