// The gated delta rule. Columns of the state are independent of each other: a few vectors of them
// stay in the first-level cache over all tokens.
#pragma once

#include "vector.h"

namespace hearth {
namespace {

// Columns [column, column + kVectors * V::kWidth).
template <typename V, size_t kVectors>
void delta_columns(const DeltaArgs& a, size_t column) {
  using Float = typename V::Float;
  for (size_t t = 0; t < a.tokens; ++t) {
    const float *query = a.queries + t * a.key_size, *key = a.keys + t * a.key_size;
    const float* value = a.values + t * a.value_size + column;
    Float sums[kVectors], outs[kVectors];
    unrolled<kVectors>([&](auto v) { sums[v] = outs[v] = V::zero(); });
    const float* before = a.state + column;
    for (size_t i = 0; i < a.key_size; ++i, before += a.value_size) {
      const Float k = V::broadcast(key[i]);
      unrolled<kVectors>(
          [&](auto v) { sums[v] = V::fma(k, V::load(before + V::kWidth * v), sums[v]); });
    }
    const Float decay = V::broadcast(a.decay[t]), beta = V::broadcast(a.beta[t]);
    // From here on, what each key element adds.
    unrolled<kVectors>([&](auto v) {
      sums[v] = V::mul(beta, V::fnma(decay, sums[v], V::load(value + V::kWidth * v)));
    });
    float* state = a.state + column;
    for (size_t i = 0; i < a.key_size; ++i, state += a.value_size) {
      const Float k = V::broadcast(key[i]), q = V::broadcast(query[i]);
      unrolled<kVectors>([&](auto v) {
        float* at = state + V::kWidth * v;
        const Float next = V::fma(k, sums[v], V::mul(decay, V::load(at)));
        V::store(at, next);
        outs[v] = V::fma(q, next, outs[v]);
      });
    }
    float* out = a.out + t * a.value_size + column;
    unrolled<kVectors>([&](auto v) { V::store(out + V::kWidth * v, outs[v]); });
  }
}

template <typename V>
void delta_rule(const DeltaArgs& a) {
  constexpr size_t kVectors = 4, kColumns = kVectors * V::kWidth;
  size_t column = 0;
  for (; column + kColumns <= a.value_size; column += kColumns)
    delta_columns<V, kVectors>(a, column);
  for (; column + V::kWidth <= a.value_size; column += V::kWidth) delta_columns<V, 1>(a, column);
  for (; column < a.value_size; ++column) {
    for (size_t t = 0; t < a.tokens; ++t) {
      const float *query = a.queries + t * a.key_size, *key = a.keys + t * a.key_size;
      float sum = 0.0f, out = 0.0f;
      float* state = a.state + column;
      for (size_t i = 0; i < a.key_size; ++i) sum = fmaf(key[i], state[i * a.value_size], sum);
      const size_t at = t * a.value_size + column;
      const float delta = a.beta[t] * fmaf(-a.decay[t], sum, a.values[at]);
      for (size_t i = 0; i < a.key_size; ++i) {
        float& each = state[i * a.value_size];
        each = fmaf(key[i], delta, a.decay[t] * each);
        out = fmaf(query[i], each, out);
      }
      a.out[at] = out;
    }
  }
}

}  // namespace
}  // namespace hearth
