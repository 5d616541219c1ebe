// Whether the compiler has the intrinsics that cpu/simd.h uses for AVX-512.
#include <immintrin.h>

int main() {
  const __m512 numbers = _mm512_cvtph_ps(_mm256_setzero_si256());
  const int rounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512i wide = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(numbers, rounding));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto mask = __mmask16(_mm512_movepi32_mask(wide) & _cvtu32_mask16(1));
  alignas(64) float to[16];
  _mm512_stream_ps(to, numbers);
  return _mm512_cvtsi512_si32(
      _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lanes, _mm512_set1_epi32(1))));
}
