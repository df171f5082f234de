// What the two files of AVX2 matrix products share. For what may stand here: avx2.h.
#pragma once

#include <cstring>

#include "avx2.h"

namespace hearth {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kQ40GroupBlock = kGroupRows * kQ40BlockBytes;
constexpr size_t kQ80GroupBlock = kGroupRows * kQ80BlockBytes;

template <Type kType>
constexpr size_t kColumnBytes = kGroupRows * (kType == Type::f32 ? 4 : 2);

// The weights of eight rows in one column, as f32.
template <Type kType>
__m256 load_column(const uint8_t* at) {
  if constexpr (kType == Type::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  return load_halves(at);
}

inline __m256i load32(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
inline void store32(void* at, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(at), v); }

// Four int8 activations in each of the eight lanes.
inline __m256i broadcast4(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

// Keeps the compiler from computing what comes later first: GCC else starts all products of a block
// before it adds any, and has no registers left for them (30 % of a prefill's speed).
// (By value: arrays whose elements are referred to end up in memory.)
template <typename Vector>
Vector in_turn(Vector v) {
  asm("" : "+x"(v));
  return v;
}

// A hint, harmless past the end of the weights.
inline void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}

// Eight rows of y, or those of them that there are.
inline __m256 load_rows(const float* y, size_t rows) {
  if (rows >= kGroupRows) return _mm256_loadu_ps(y);
  alignas(32) float all[kGroupRows] = {};
  std::memcpy(all, y, rows * sizeof(float));
  return _mm256_load_ps(all);
}

inline void store_rows(float* y, __m256 sums, size_t rows) {
  if (rows >= kGroupRows) {
    _mm256_storeu_ps(y, sums);
    return;
  }
  alignas(32) float all[kGroupRows];
  _mm256_store_ps(all, sums);
  std::memcpy(y, all, rows * sizeof(float));
}

}  // namespace

namespace avx2 {

// matmul_* for many tokens.
void many_f32(const MatmulArgs& a);
void many_f16(const MatmulArgs& a);
void many_q40(const MatmulArgs& a);

}  // namespace avx2
}  // namespace hearth
