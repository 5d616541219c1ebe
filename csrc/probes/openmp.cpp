// Whether there is OpenMP: its flag, its header and its runtime, as cpu/threads.h uses them.
#include <omp.h>
#ifndef _OPENMP
#error "OpenMP is switched off"
#endif

int main() {
  int sizes[2] = {};
#pragma omp parallel num_threads(2)
  sizes[omp_get_thread_num()] = omp_get_num_threads();
  return sizes[0] == 0;
}
