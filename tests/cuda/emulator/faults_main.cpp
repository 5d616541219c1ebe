// Runs kernels of faults.cu under a sanitizer: `program NAME with|without`, or `program all` for
// every one of them without its fault.
#include <cstdio>
#include <cstring>
#include <vector>

extern "C" {
int run_fault(const char* name, bool planted, float* data);
const char* fault_name(unsigned number);
const char* emulated_take_failure();
}

static int run(const char* name, bool planted) {
  std::vector<float> data(128, 1.0f);
  data.shrink_to_fit();
  const int error = run_fault(name, planted, data.data());
  if (error) std::fprintf(stderr, "emulator: %s\n", emulated_take_failure());
  return error;
}

int main(int count, char** words) {
  if (count == 3) return run(words[1], !std::strcmp(words[2], "with")) != 0;
  if (count != 2 || std::strcmp(words[1], "all")) return 2;
  int errors = 0;
  for (unsigned i = 0; fault_name(i); ++i) errors += run(fault_name(i), false) != 0;
  return errors != 0;
}
