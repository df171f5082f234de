// The vector trait of AVX2 with FMA and F16C (see generic/vector.h).
#pragma once

#include <immintrin.h>

#include "../generic/vector.h"

namespace hearth {
namespace {

struct Avx2 {
  using Float = __m256;
  using Int = __m256i;
  static constexpr size_t kWidth = 8;

  // Attention: enough sums to hide the latency of one, and no more than 16 registers hold.
  static constexpr size_t kPageQueries = 6;
  static constexpr size_t page_vectors(size_t queries) { return queries > 3 ? 2 : 4; }
  static constexpr bool kSumsOfLanes = true;
  using EightSums = __m256;
  static EightSums zero_eight() { return zero(); }
  static EightSums add_eights(EightSums sums, Float v) { return add(sums, v); }
  static void store_eight(float* at, EightSums sums) { store(at, sums); }

  // Float products: six sums of each parity of columns; from nine tokens on a panel (products of
  // fewer have too few groups to make up for what it copies).
  using FloatTiles = std::index_sequence<3, 2, 1>;
  static constexpr size_t kFloatTileGroups = 2;
  static constexpr size_t kPanelTokens = 9;
  static constexpr size_t kPanelGroups = 3;
  // The bytes by which a few tokens ask ahead for weights, into the second-level cache. (Into the
  // first level fewer lines can be on their way: two tokens then take 1.5 times as long.) Measured
  // on Zen 4: 32 to 128 KiB are flat, 8 KiB give 60 % of that for two tokens. Float products read
  // more groups at once, and ask ahead in each.
  static constexpr size_t kAhead = 32768;
  static constexpr size_t kFloatAhead = 8192;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Float load(const float* at) { return _mm256_loadu_ps(at); }
  static Float load(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static Float load(const Bfloat* at) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static void store(float* at, Float v) { _mm256_storeu_ps(at, v); }
  static void store(uint16_t* at, Float v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static float to_float(float value) { return value; }
  static float to_float(uint16_t half) { return _cvtsh_ss(half); }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float clamp(Float v, float low, float high) {
    // min and max give their second operand where one is NaN.
    return _mm256_max_ps(broadcast(low), _mm256_min_ps(broadcast(high), v));
  }
  static Float round(Float v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // Four activations stay in memory: a broadcast from there is a load.
  using FourFloats = const float*;
  static FourFloats load_four(const float* at) { return at; }
  template <size_t kLane>
  static Float fma_lane(Float a, FourFloats four, Float c) {
    return fma(a, broadcast(four[kLane]), c);
  }
  // Makes the compiler compute a vector here, in a register. Else GCC starts all products of a
  // block before it adds any, and runs out of registers (30 % of the speed of prefill); or it loads
  // an operand again for each use. By value: array elements that are referred to end up in memory.
  template <typename Vector>
  static Vector in_turn(Vector v) {
    HEARTH_IN_REGISTER(v);
    return v;
  }
  // 2^n for an integer n of the normal range.
  static Float power_of_two(Float n) {
    const Int biased = _mm256_add_epi32(to_int(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

  static Int broadcast_int(int32_t value) { return _mm256_set1_epi32(value); }
  static Int zero_int() { return _mm256_setzero_si256(); }
  static Float from_int(Int v) { return _mm256_cvtepi32_ps(v); }
  static Int to_int(Float v) { return _mm256_cvtps_epi32(v); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int max(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Int magnitude_bits(Float v) {
    return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
  }
  static int32_t largest(Int v) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 1)));
  }
  static int32_t sum(Int v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 1)));
  }
  // A block of elements that are within int8.
  static void store_int8(int8_t* at, const Int (&v)[4]) {
    // packs works within 128-bit halves; the permutation puts the groups of four back in order.
    const Int bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const Int order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<Int*>(at), _mm256_permutevar8x32_epi32(bytes, order));
  }
  static void load_eight(const int8_t* at, Float (&out)[1]) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
};

}  // namespace
}  // namespace hearth
