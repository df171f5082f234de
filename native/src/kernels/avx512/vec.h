// The vector trait of AVX-512 (F, BW, VL and VNNI), for matrix products and attention (see
// generic/vector.h).
#pragma once

#include <immintrin.h>

#include "../generic/vector.h"

namespace hearth {
namespace {

struct Avx512 {
  using Float = __m512;
  using Int = __m512i;
  static constexpr size_t kWidth = 16;
  static constexpr size_t kAhead = 32768;  // see avx2/vec.h
  static constexpr size_t kFloatAhead = 8192;
  static constexpr size_t kPanelGroups = 6;

  // Attention: see avx2/vec.h. Sums are those of eight lanes, so that the results are AVX2's.
  static constexpr size_t kPageQueries = 8;
  static constexpr size_t page_vectors(size_t queries) { return queries > 4 ? 2 : 4; }
  static constexpr bool kSumsOfLanes = true;
  using EightSums = __m256;
  static EightSums zero_eight() { return _mm256_setzero_ps(); }
  static EightSums add_eights(EightSums sums, Float v) {
    const __m512d pairs = _mm512_castps_pd(v);
    sums = _mm256_add_ps(sums, _mm512_castps512_ps256(v));
    return _mm256_add_ps(sums, _mm256_castpd_ps(_mm512_extractf64x4_pd(pairs, 1)));
  }
  static void store_eight(float* at, EightSums sums) { _mm256_storeu_ps(at, sums); }

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Float load(const float* at) { return _mm512_loadu_ps(at); }
  static Float load(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static void store(float* at, Float v) { _mm512_storeu_ps(at, v); }
  static float to_float(float value) { return value; }
  static float to_float(uint16_t half) { return _cvtsh_ss(half); }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float clamp(Float v, float low, float high) {
    return _mm512_max_ps(broadcast(low), _mm512_min_ps(broadcast(high), v));
  }
  static Float round(Float v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // 2^n for an integer n of the normal range.
  static Float power_of_two(Float n) {
    const Int biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  // See avx2/vec.h.
  template <typename Vector>
  static Vector in_turn(Vector v) {
    HEARTH_IN_REGISTER(v);
    return v;
  }

  static Int broadcast_int(int32_t value) { return _mm512_set1_epi32(value); }
  static Int zero_int() { return _mm512_setzero_si512(); }
  static Float from_int(Int v) { return _mm512_cvtepi32_ps(v); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int dot(Int sums, Int codes, Int activations) {
    return _mm512_dpbusd_epi32(sums, codes, activations);
  }
};

}  // namespace
}  // namespace hearth
