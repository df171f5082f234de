// Attention with AVX2: two products, of queries with keys and of weights with values, by one tile.
#include <algorithm>
#include <cmath>
#include <limits>

#include "avx2.h"

namespace hearth {
namespace {

constexpr size_t kWide = 8;

// c = a x b, or c * shrink + a x b. Every number of c is summed over `depth` in order, whatever the
// tile: how queries are put together must not show in the numbers.
struct Product {
  const float* a;  // [queries, a_stride], of which `depth`
  size_t a_stride, depth;
  const void* b;  // [depth, b_stride], of which `width`
  size_t b_stride;
  float* c;  // [queries, c_stride]
  size_t c_stride, width;
  const float* shrink;  // [queries], or nullptr: c is not read
};

template <Type kType>
__m256 load8(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32)
    return _mm256_loadu_ps(static_cast<const float*>(numbers) + index);
  return load_halves(static_cast<const uint16_t*>(numbers) + index);
}

template <Type kType>
float load1(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return static_cast<const float*>(numbers)[index];
  return _cvtsh_ss(static_cast<const uint16_t*>(numbers)[index]);
}

template <Type kType, size_t kQueries, size_t kVectors>
void tile(const Product& p, size_t query, size_t column) {
  const float* a = p.a + query * p.a_stride;
  float* c = p.c + query * p.c_stride + column;
  __m256 sums[kQueries][kVectors];
#pragma GCC unroll 8
  for (size_t q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      sums[q][v] = _mm256_setzero_ps();
      if (p.shrink != nullptr) {
        sums[q][v] = _mm256_mul_ps(_mm256_loadu_ps(c + q * p.c_stride + kWide * v),
                                   _mm256_broadcast_ss(p.shrink + query + q));
      }
    }
  }
  for (size_t k = 0; k < p.depth; ++k) {
    __m256 b[kVectors];
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v)
      b[v] = load8<kType>(p.b, k * p.b_stride + column + kWide * v);
#pragma GCC unroll 8
    for (size_t q = 0; q < kQueries; ++q) {
      const __m256 each = _mm256_broadcast_ss(a + q * p.a_stride + k);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) sums[q][v] = _mm256_fmadd_ps(each, b[v], sums[q][v]);
    }
  }
#pragma GCC unroll 8
  for (size_t q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v)
      _mm256_storeu_ps(c + q * p.c_stride + kWide * v, sums[q][v]);
  }
}

template <Type kType, size_t kQueries>
void queries(const Product& p, size_t query) {
  // Enough sums to hide the latency of one, and no more than there are registers for.
  constexpr size_t kVectors = kQueries > 3 ? 2 : 4;
  size_t n = 0;
  for (; n + kWide * kVectors <= p.width; n += kWide * kVectors)
    tile<kType, kQueries, kVectors>(p, query, n);
  for (; n + kWide <= p.width; n += kWide) tile<kType, kQueries, 1>(p, query, n);
  for (; n < p.width; ++n) {
    for (size_t q = query; q < query + kQueries; ++q) {
      float sum = p.shrink != nullptr ? p.c[q * p.c_stride + n] * p.shrink[q] : 0.0f;
      for (size_t k = 0; k < p.depth; ++k)
        sum = std::fma(p.a[q * p.a_stride + k], load1<kType>(p.b, k * p.b_stride + n), sum);
      p.c[q * p.c_stride + n] = sum;
    }
  }
}

template <Type kType>
void multiply(const Product& p, size_t count) {
  size_t q = 0;
  for (; q + 6 <= count; q += 6) queries<kType, 6>(p, q);
  switch (count - q) {
    case 5:
      return queries<kType, 5>(p, q);
    case 4:
      return queries<kType, 4>(p, q);
    case 3:
      return queries<kType, 3>(p, q);
    case 2:
      return queries<kType, 2>(p, q);
    case 1:
      return queries<kType, 1>(p, q);
  }
}

// The largest of the eight; a NaN is passed over, as by the comparison in the scalar twin.
float largest_of(__m256 v) {
  alignas(32) float all[8];
  _mm256_store_ps(all, v);
  float largest = all[0];
  for (float each : all) largest = each > largest ? each : largest;
  return largest;
}

// Scores become weights, e^(score - largest); returns how much what was summed before shrinks.
float weigh(const AttendArgs& a, size_t query) {
  float* scores = a.scratch + query * a.stride;
  const size_t whole = a.slots / kWide * kWide, rest = a.slots - whole;
  // Behind the last slot stand scores whose weight is nothing.
  if (rest > 0)
    std::fill_n(scores + a.slots, kWide - rest, -std::numeric_limits<float>::infinity());
  __m256 top = _mm256_set1_ps(a.largest[query]);
  for (size_t s = 0; s < a.slots; s += kWide) top = _mm256_max_ps(_mm256_loadu_ps(scores + s), top);
  const float largest = largest_of(top);
  const __m256 offset = _mm256_set1_ps(largest);
  __m256 sums = _mm256_setzero_ps();
  for (size_t s = 0; s < a.slots; s += kWide) {
    const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + s), offset));
    _mm256_storeu_ps(scores + s, e);
    if (s < whole) sums = _mm256_add_ps(sums, e);
  }
  if (rest > 0) {
    std::fill_n(scores + a.slots, kWide - rest, 0.0f);
    sums = _mm256_add_ps(sums, _mm256_loadu_ps(scores + whole));
  }
  const float before = a.largest[query];
  const float shrink = before == largest ? 1.0f : std::exp(before - largest);
  a.largest[query] = largest;
  a.sum[query] = a.sum[query] * shrink + sum_in_order(sums);
  return shrink;
}

template <Type kType>
void attend(const AttendArgs& a) {
  multiply<kType>({.a = a.q,
                   .a_stride = a.head_size,
                   .depth = a.head_size,
                   .b = a.keys,
                   .b_stride = a.stride,
                   .c = a.scratch,
                   .c_stride = a.stride,
                   .width = (a.slots + kWide - 1) / kWide * kWide,
                   .shrink = nullptr},
                  a.queries);
  for (size_t q = 0; q < a.queries; ++q) a.shrink[q] = weigh(a, q);
  multiply<kType>({.a = a.scratch,
                   .a_stride = a.stride,
                   .depth = a.slots,
                   .b = a.values,
                   .b_stride = a.head_size,
                   .c = a.out,
                   .c_stride = a.head_size,
                   .width = a.head_size,
                   .shrink = a.shrink},
                  a.queries);
}

}  // namespace

namespace avx2 {

void attend_f32(const AttendArgs& a) { attend<Type::f32>(a); }
void attend_f16(const AttendArgs& a) { attend<Type::f16>(a); }

}  // namespace avx2
}  // namespace hearth
