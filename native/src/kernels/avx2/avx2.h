// What the files of AVX2 kernels share. Only they are compiled for AVX2, so nothing here may
// have external linkage but declarations: the linker could keep an AVX2 copy of an inline function
// for all.
#pragma once

#include <immintrin.h>

#include "hearth/kernels.h"

namespace hearth {
namespace {

// Eight f16 to f32.
inline __m256 load_halves(const void* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

inline float sum_in_order(__m256 v) {
  alignas(32) float all[8];
  _mm256_store_ps(all, v);
  float sum = 0.0f;
  for (float each : all) sum += each;
  return sum;
}

// e^x for x <= about 88; Cephes' polynomial after x = n ln 2 + r. Below -87 the result is near 0.
inline __m256 exp8(__m256 x) {
  // min and max give their second operand where one is NaN: so NaN stays NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.0f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

}  // namespace

namespace avx2 {

void matmul_f32(const MatmulArgs& a);
void matmul_f16(const MatmulArgs& a);
void matmul_q80(const MatmulArgs& a);
void matmul_q40(const MatmulArgs& a);
void attend_f32(const AttendArgs& a);
void attend_f16(const AttendArgs& a);

}  // namespace avx2
}  // namespace hearth
