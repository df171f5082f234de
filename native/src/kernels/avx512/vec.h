// The vector trait of AVX-512 (F, BW, VL and VNNI), as the products of blocks want it (see
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
  static constexpr size_t kAhead = 8192;  // see avx2/vec.h

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Float load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, Float v) { _mm512_storeu_ps(at, v); }

  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  // See avx2/vec.h.
  template <typename Vector>
  static Vector in_turn(Vector v) {
    asm("" : "+v"(v));
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
