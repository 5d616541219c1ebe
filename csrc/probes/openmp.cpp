// Whether there is OpenMP: its flag, its header and its runtime, as cpu/threads.h uses them.
#include <omp.h>
#ifndef _OPENMP
#error "OpenMP is switched off"
#endif

int main() {
  int threads[8] = {};
#pragma omp parallel num_threads(2)
  {
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < 8; ++i) threads[i] = omp_get_thread_num();
  }
  return threads[0] + omp_in_parallel();
}
