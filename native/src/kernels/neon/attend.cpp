// Attention with NEON: two products, of queries with keys and of weights with values, by one tile.
#include <algorithm>
#include <cmath>
#include <limits>

#include "neon.h"

namespace hearth {
namespace {

constexpr size_t kWide = 4;

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
float32x4_t load4(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return vld1q_f32(static_cast<const float*>(numbers) + index);
  return load_halves(static_cast<const uint16_t*>(numbers) + index);
}

template <Type kType>
float load1(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return static_cast<const float*>(numbers)[index];
  return half_to_float(static_cast<const uint16_t*>(numbers)[index]);
}

template <Type kType, size_t kQueries, size_t kVectors>
void tile(const Product& p, size_t query, size_t column) {
  const float* a = p.a + query * p.a_stride;
  float* c = p.c + query * p.c_stride + column;
  float32x4_t sums[kQueries][kVectors];
  unrolled<kQueries>([&](auto q) {
    unrolled<kVectors>([&](auto v) {
      sums[q][v] = p.shrink == nullptr ? vdupq_n_f32(0.0f)
                                       : vmulq_n_f32(vld1q_f32(c + q * p.c_stride + kWide * v),
                                                     p.shrink[query + q]);
    });
  });
  for (size_t k = 0; k < p.depth; ++k) {
    float32x4_t b[kVectors];
    unrolled<kVectors>(
        [&](auto v) { b[v] = load4<kType>(p.b, k * p.b_stride + column + kWide * v); });
    unrolled<kQueries>([&](auto q) {
      const float32x4_t each = vld1q_dup_f32(a + q * p.a_stride + k);
      unrolled<kVectors>([&](auto v) { sums[q][v] = vfmaq_f32(sums[q][v], each, b[v]); });
    });
  }
  unrolled<kQueries>([&](auto q) {
    unrolled<kVectors>([&](auto v) { vst1q_f32(c + q * p.c_stride + kWide * v, sums[q][v]); });
  });
}

template <Type kType, size_t kQueries>
void queries(const Product& p, size_t query) {
  // At most 24 sums: the rest of the 32 registers holds what is multiplied.
  constexpr size_t kVectors = kQueries > 3 ? 4 : 8;
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
  for (; q + 4 <= count; q += 4) queries<kType, 4>(p, q);
  switch (count - q) {
    case 3:
      return queries<kType, 3>(p, q);
    case 2:
      return queries<kType, 2>(p, q);
    case 1:
      return queries<kType, 1>(p, q);
  }
}

// Scores become weights, e^(score - largest); returns how much what was summed before shrinks.
float weigh(const AttendArgs& a, size_t query) {
  float* scores = a.scratch + query * a.stride;
  float largest = a.largest[query];
  for (size_t s = 0; s < a.slots; ++s) largest = scores[s] > largest ? scores[s] : largest;
  const float before = a.largest[query];
  const float shrink = before == largest ? 1.0f : std::exp(before - largest);
  float sum = a.sum[query] * shrink;
  size_t s = 0;
  for (; s + kWide <= a.slots; s += kWide) {
    const float32x4_t e = exp4(vsubq_f32(vld1q_f32(scores + s), vdupq_n_f32(largest)));
    vst1q_f32(scores + s, e);
    sum += vaddvq_f32(e);
  }
  for (; s < a.slots; ++s) {
    scores[s] = std::exp(scores[s] - largest);
    sum += scores[s];
  }
  a.largest[query] = largest;
  a.sum[query] = sum;
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

namespace neon {

void attend_f32(const AttendArgs& a) { attend<Type::f32>(a); }
void attend_f16(const AttendArgs& a) { attend<Type::f16>(a); }

}  // namespace neon
}  // namespace hearth
