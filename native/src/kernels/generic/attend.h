// Attention to one page: two matrix products (queries by keys, weights by values) through one tile,
// with the online softmax between them.
#pragma once

#include <cmath>

#include "vector.h"

namespace hearth {
namespace {

// c = a x b, or c * shrink + a x b. Every element of c is summed over `depth` in order, whatever
// the tile: how queries are combined must not change the result.
template <typename Number>
struct PageProduct {
  const float* a;  // [queries, a_stride], of which `depth` columns
  size_t a_stride, depth;
  const Number* b;  // [depth, b_stride], of which `width` columns
  size_t b_stride;
  float* c;  // [queries, c_stride]
  size_t c_stride, width;
  const float* shrink;  // [queries], or nullptr: c is not read
  const uint8_t* next;  // so many bytes to prefetch with each step of the first tile
  size_t next_step;
};

template <typename V, typename Number, size_t kQueries, size_t kVectors>
void page_tile(const PageProduct<Number>& p, size_t query, size_t column) {
  using Float = typename V::Float;
  const float* a = p.a + query * p.a_stride;
  float* c = p.c + query * p.c_stride + column;
  Float sums[kQueries][kVectors];
  unrolled<kQueries>([&](auto q) {
    unrolled<kVectors>([&](auto v) {
      sums[q][v] = p.shrink == nullptr ? V::zero()
                                       : V::mul(V::load(c + q * p.c_stride + V::kWidth * v),
                                                V::broadcast(p.shrink[query + q]));
    });
  });
  const size_t next_step = query == 0 && column == 0 ? p.next_step : 0;
  for (size_t k = 0; k < p.depth; ++k) {
    for (size_t at = 0; at < next_step; at += kLine) prefetch(p.next + k * next_step + at);
    Float b[kVectors];
    unrolled<kVectors>(
        [&](auto v) { b[v] = V::load(p.b + k * p.b_stride + column + V::kWidth * v); });
    // Loaded once for all queries.
    if constexpr (kQueries > 1) unrolled<kVectors>([&](auto v) { b[v] = V::in_turn(b[v]); });
    unrolled<kQueries>([&](auto q) {
      const Float each = V::broadcast(a[q * p.a_stride + k]);
      unrolled<kVectors>([&](auto v) { sums[q][v] = V::fma(each, b[v], sums[q][v]); });
    });
  }
  unrolled<kQueries>([&](auto q) {
    unrolled<kVectors>([&](auto v) { V::store(c + q * p.c_stride + V::kWidth * v, sums[q][v]); });
  });
}

template <typename V, typename Number, size_t kQueries>
void page_rows(const PageProduct<Number>& p, size_t query) {
  constexpr size_t kVectors = V::page_vectors(kQueries);
  size_t n = 0;
  for (; n + V::kWidth * kVectors <= p.width; n += V::kWidth * kVectors)
    page_tile<V, Number, kQueries, kVectors>(p, query, n);
  for (; n + V::kWidth <= p.width; n += V::kWidth) page_tile<V, Number, kQueries, 1>(p, query, n);
  for (; n < p.width; ++n) {
    for (size_t q = query; q < query + kQueries; ++q) {
      float sum = p.shrink != nullptr ? p.c[q * p.c_stride + n] * p.shrink[q] : 0.0f;
      for (size_t k = 0; k < p.depth; ++k)
        sum = fmaf(p.a[q * p.a_stride + k], V::to_float(p.b[k * p.b_stride + n]), sum);
      p.c[q * p.c_stride + n] = sum;
    }
  }
}

template <typename V, typename Number>
void page_product(const PageProduct<Number>& p, size_t queries) {
  for (size_t q = 0; q < queries; q += V::kPageQueries) {
    with_constant<V::kPageQueries>(smaller(V::kPageQueries, queries - q),
                                   [&](auto count) { page_rows<V, Number, count>(p, q); });
  }
}

// scores[s] = e^(scores[s] - largest); returns `sum` plus all of them. The order of summation is
// part of the results, so each instruction set keeps its own.
template <typename V>
float weigh_slots(float* scores, size_t slots, float largest, float sum) {
  using Float = typename V::Float;
  const auto weigh = [&](size_t s) {
    const Float weights = exp<V>(V::sub(V::load(scores + s), V::broadcast(largest)));
    V::store(scores + s, weights);
    return weights;
  };
  size_t s = 0;
  if constexpr (V::kSumsOfLanes) {
    // Eight sums, whatever the width; the last vector is filled with zeros.
    typename V::EightSums sums = V::zero_eight();
    for (; s + V::kWidth <= slots; s += V::kWidth) sums = V::add_eights(sums, weigh(s));
    if (s < slots) {
      weigh(s);
      for (size_t behind = slots; behind < s + V::kWidth; ++behind) scores[behind] = 0.0f;
      sums = V::add_eights(sums, V::load(scores + s));
    }
    float lanes[8];
    V::store_eight(lanes, sums);
    return sum + sum_in_order(lanes);
  } else {
    // The sum of each vector, then slot by slot.
    for (; s + V::kWidth <= slots; s += V::kWidth) sum += V::sum(weigh(s));
    for (; s < slots; ++s) {
      scores[s] = expf(scores[s] - largest);
      sum += scores[s];
    }
    return sum;
  }
}

// Scores of one query become weights; returns the factor for what was summed over earlier pages.
template <typename V>
float softmax(const AttendArgs& a, size_t query) {
  float* scores = a.scratch + query * a.stride;
  // Whole vectors are read: the scores past the last slot must not be the largest.
  for (size_t s = a.slots; s % V::kWidth != 0; ++s) scores[s] = -kInfinity;
  const float before = a.largest[query];
  typename V::Float top = V::broadcast(before);
  for (size_t s = 0; s < a.slots; s += V::kWidth) top = V::max(V::load(scores + s), top);
  float lanes[V::kWidth];
  V::store(lanes, top);
  float largest = lanes[0];
  for (float each : lanes) largest = each > largest ? each : largest;
  const float shrink = before == largest ? 1.0f : expf(before - largest);
  a.largest[query] = largest;
  a.sum[query] = weigh_slots<V>(scores, a.slots, largest, a.sum[query] * shrink);
  return shrink;
}

// scores = softcap * tanh(scores / softcap), in whole vectors
template <typename V>
void cap_scores(float* scores, size_t slots, float softcap) {
  using Float = typename V::Float;
  const Float one = V::broadcast(1.0f), cap = V::broadcast(softcap);
  for (size_t s = 0; s < slots; s += V::kWidth) {
    // tanh(x) = 1 - 2 / (e^(2 x) + 1)
    const Float twice = V::mul(V::load(scores + s), V::broadcast(2.0f / softcap));
    const Float part = V::div(V::broadcast(2.0f), V::add(exp<V>(twice), one));
    V::store(scores + s, V::mul(cap, V::sub(one, part)));
  }
}

template <typename V, typename Number>
void attend(const AttendArgs& a) {
  // Whole lines, so many that the first product asks for all.
  const size_t next_step = (a.next_bytes + a.key_size * kLine - 1) / (a.key_size * kLine) * kLine;
  page_product<V, Number>({.a = a.q,
                           .a_stride = a.key_size,
                           .depth = a.key_size,
                           .b = static_cast<const Number*>(a.keys),
                           .b_stride = a.stride,
                           .c = a.scratch,
                           .c_stride = a.stride,
                           .width = (a.slots + V::kWidth - 1) / V::kWidth * V::kWidth,
                           .shrink = nullptr,
                           .next = static_cast<const uint8_t*>(a.next),
                           .next_step = next_step},
                          a.queries);
  for (size_t q = 0; q < a.queries; ++q) {
    if (a.softcap > 0.0f) cap_scores<V>(a.scratch + q * a.stride, a.slots, a.softcap);
    a.shrink[q] = softmax<V>(a, q);
  }
  page_product<V, Number>({.a = a.scratch,
                           .a_stride = a.stride,
                           .depth = a.slots,
                           .b = static_cast<const Number*>(a.values),
                           .b_stride = a.value_size,
                           .c = a.out,
                           .c_stride = a.value_size,
                           .width = a.value_size,
                           .shrink = a.shrink,
                           .next = nullptr,
                           .next_step = 0},
                          a.queries);
}

}  // namespace
}  // namespace hearth
