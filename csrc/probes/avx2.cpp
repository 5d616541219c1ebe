// Whether the compiler has the intrinsics that cpu/simd.h uses for AVX2.
#include <immintrin.h>

int main() {
  const __m128i bits = _mm_setzero_si128();
  const __m256 numbers = _mm256_cvtph_ps(bits);
  const __m256i wide = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT));
  alignas(32) float to[8];
  _mm256_stream_ps(to, numbers);
  _mm_sfence();
  return _mm256_cvtsi256_si32(wide);
}
