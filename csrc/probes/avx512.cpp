// Whether the compiler has the intrinsics that cpu/simd.h uses for AVX-512.
#include <immintrin.h>

int main() {
  const __m512 numbers = _mm512_cvtph_ps(_mm256_setzero_si256());
  const int rounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512i wide = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(numbers, rounding));
  return _mm512_cvtsi512_si32(wide);
}
