// Whether the compiler has the intrinsics that cpu/simd.h uses for AVX2.
#include <immintrin.h>

int main() {
  const __m128i bits = _mm_setzero_si128();
  const __m256 numbers = _mm256_cvtph_ps(bits);
  const __m256i wide = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT));
  _mm_stream_si128(nullptr, _mm256_castsi256_si128(wide));
  _mm_sfence();
}
