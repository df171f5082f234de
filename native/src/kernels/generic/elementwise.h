// Everything but the matrix products and attention. The twins in scalar/kernels.cpp define the
// results; what is not a whole vector is computed as there.
#pragma once

#include <cmath>

#include "vector.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

template <typename V>
void quantize(const float* x, size_t columns, int8_t* q, float* scales, HalfSums* sums) {
  constexpr size_t kVectors = kBlock / V::kWidth;
  using Int = typename V::Int;
  for (size_t b = 0; b < columns / kBlock; ++b, x += kBlock, q += kBlock) {
    typename V::Float v[kVectors];
    // Compared as bits: infinity is above every number, and NaN above infinity.
    Int top = V::zero_int();
    unrolled<kVectors>([&](auto i) {
      v[i] = V::load(x + V::kWidth * i);
      top = V::max(top, V::magnitude_bits(v[i]));
    });
    const int32_t bits = V::largest(top);
    if (bits >= 0x7f800000) {
      std::memset(q, 0, kBlock);
      scales[b] = kNan;
      sums[b] = {0, 0};
      continue;
    }
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const float inverse = largest >= kSmallestQuantized ? 127.0f / largest : 0.0f;
    Int whole[kVectors];
    unrolled<kVectors>([&](auto i) { whole[i] = V::to_int(V::mul(v[i], V::broadcast(inverse))); });
    V::store_int8(q, whole);
    scales[b] = largest / 127.0f;
    Int first = whole[0], second = whole[kVectors / 2];
    unrolled<kVectors / 2 - 1>([&](auto i) {
      first = V::add(first, whole[i + 1]);
      second = V::add(second, whole[kVectors / 2 + i + 1]);
    });
    sums[b] = {static_cast<int16_t>(V::sum(first)), static_cast<int16_t>(V::sum(second))};
  }
}

template <typename V>
void rms_norm(const float* x, const float* weight, size_t size, float epsilon, float* y) {
  using Float = typename V::Float;
  // Eight sums, whatever the width of a vector.
  constexpr size_t kSums = 8, kVectors = kSums / V::kWidth;
  Float squares[kVectors];
  unrolled<kVectors>([&](auto v) { squares[v] = V::zero(); });
  size_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    unrolled<kVectors>([&](auto v) {
      const Float each = V::load(x + i + V::kWidth * v);
      squares[v] = V::fma(each, each, squares[v]);
    });
  }
  float sums[kSums];
  unrolled<kVectors>([&](auto v) { V::store(sums + V::kWidth * v, squares[v]); });
  for (; i < size; ++i) sums[i % kSums] = fmaf(x[i], x[i], sums[i % kSums]);
  const float scale = 1.0f / sqrtf(sum_in_order(sums) / static_cast<float>(size) + epsilon);
  for (i = 0; i + V::kWidth <= size; i += V::kWidth)
    V::store(y + i, V::mul(V::mul(V::load(x + i), V::broadcast(scale)), V::load(weight + i)));
  for (; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

template <typename V>
void add(float* x, const float* y, size_t size) {
  size_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth)
    V::store(x + i, V::add(V::load(x + i), V::load(y + i)));
  for (; i < size; ++i) x[i] += y[i];
}

template <typename V>
void layer_norm(const float* x, const float* weight, const float* bias, size_t size, float epsilon,
                float* y) {
  using Float = typename V::Float;
  constexpr size_t kSums = 8, kVectors = kSums / V::kWidth;
  // The sum of term(x), eight sums at a time.
  const auto total = [&](auto vector_term, auto term) {
    Float parts[kVectors];
    unrolled<kVectors>([&](auto v) { parts[v] = V::zero(); });
    size_t i = 0;
    for (; i + kSums <= size; i += kSums) {
      unrolled<kVectors>(
          [&](auto v) { parts[v] = vector_term(V::load(x + i + V::kWidth * v), parts[v]); });
    }
    float sums[kSums];
    unrolled<kVectors>([&](auto v) { V::store(sums + V::kWidth * v, parts[v]); });
    for (; i < size; ++i) sums[i % kSums] = term(x[i], sums[i % kSums]);
    return sum_in_order(sums);
  };
  const float mean = total([](Float each, Float sum) { return V::add(sum, each); },
                           [](float each, float sum) { return sum + each; }) /
                     static_cast<float>(size);
  const Float means = V::broadcast(mean);
  const float variance = total(
      [&](Float each, Float sum) {
        const Float apart = V::sub(each, means);
        return V::fma(apart, apart, sum);
      },
      [&](float each, float sum) { return fmaf(each - mean, each - mean, sum); });
  const float scale = 1.0f / sqrtf(variance / static_cast<float>(size) + epsilon);
  size_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) {
    const Float scaled = V::mul(V::sub(V::load(x + i), means), V::broadcast(scale));
    V::store(y + i, V::fma(scaled, V::load(weight + i), V::load(bias + i)));
  }
  for (; i < size; ++i) y[i] = fmaf((x[i] - mean) * scale, weight[i], bias[i]);
}

// gate = function(gate) * up, or function(gate) without up.
template <typename V, typename Vectors, typename Elements>
void activate(float* gate, const float* up, size_t size, Vectors vectors, Elements elements) {
  size_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) {
    const auto value = vectors(V::load(gate + i));
    V::store(gate + i, up == nullptr ? value : V::mul(value, V::load(up + i)));
  }
  for (; i < size; ++i) gate[i] = up == nullptr ? elements(gate[i]) : elements(gate[i]) * up[i];
}

// x / (1 + e^minus)
template <typename V>
typename V::Float over_exp(typename V::Float x, typename V::Float minus) {
  return V::div(x, V::add(V::broadcast(1.0f), exp<V>(minus)));
}

template <typename V>
void silu(float* gate, const float* up, size_t size) {
  using Float = typename V::Float;
  activate<V>(
      gate, up, size, [](Float x) { return over_exp<V>(x, V::sub(V::zero(), x)); },
      [](float x) { return x / (1.0f + expf(-x)); });
}

template <typename V>
void gelu_tanh(float* gate, const float* up, size_t size) {
  using Float = typename V::Float;
  activate<V>(
      gate, up, size,
      [](Float x) {
        const Float square = V::fma(V::mul(x, x), V::broadcast(kGeluCubic), V::broadcast(1.0f));
        return over_exp<V>(x, V::mul(V::broadcast(-kGeluFactor), V::mul(x, square)));
      },
      [](float x) {
        return x / (1.0f + expf(-kGeluFactor * (x * fmaf(x * x, kGeluCubic, 1.0f))));
      });
}

// The error function has no vector form here: models with it are small.
template <typename V>
void gelu(float* gate, const float* up, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    const float value = 0.5f * gate[i] * (1.0f + erff(gate[i] * 0.70710678f));
    gate[i] = up == nullptr ? value : value * up[i];
  }
}

template <typename V>
void relu_squared(float* gate, const float* up, size_t size) {
  using Float = typename V::Float;
  activate<V>(
      gate, up, size,
      [](Float x) {
        // The zero first: a NaN stays.
        const Float positive = V::max(V::zero(), x);
        return V::mul(positive, positive);
      },
      [](float x) {
        const float positive = x < 0.0f ? 0.0f : x;
        return positive * positive;
      });
}

template <typename V>
void rope(float* head, const float* cos, const float* sin, size_t half) {
  size_t i = 0;
  for (; i + V::kWidth <= half; i += V::kWidth) {
    const auto a = V::load(head + i), b = V::load(head + half + i);
    const auto c = V::load(cos + i), s = V::load(sin + i);
    V::store(head + i, V::sub(V::mul(a, c), V::mul(b, s)));
    V::store(head + half + i, V::add(V::mul(b, c), V::mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

template <typename V>
void to_f16(const float* x, size_t size, uint16_t* out) {
  const auto clamp = [](typename V::Float v) { return V::clamp(v, -kLargestHalf, kLargestHalf); };
  size_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) V::store(out + i, clamp(V::load(x + i)));
  for (; i < size; ++i) {
    uint16_t same[V::kWidth];
    V::store(same, clamp(V::broadcast(x[i])));
    out[i] = same[0];
  }
}

template <typename V>
void from_f16(const uint16_t* in, size_t size, float* x, bool add) {
  size_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) {
    const auto before = add ? V::load(x + i) : V::zero();
    V::store(x + i, V::add(before, V::load(in + i)));
  }
  for (; i < size; ++i) x[i] = (add ? x[i] : 0.0f) + V::to_float(in[i]);
}

// each(offset, vector) for every vector of kBlock int8 elements, `offset` counted from the first.
template <typename V, typename Each>
void visit_int8(const int8_t* q, size_t size, Each each) {
  for (size_t i = 0; i < size; i += kGroupRows) {
    typename V::Float eight[kGroupVectors<V>];
    V::load_eight(q + i, eight);
    unrolled<kGroupVectors<V>>([&](auto v) { each(i + V::kWidth * v, eight[v]); });
  }
}

template <typename V>
void from_q80(const int8_t* q, const float* scales, size_t size, float* x, bool add) {
  visit_int8<V>(q, size, [&](size_t i, typename V::Float v) {
    const auto before = add ? V::load(x + i) : V::zero();
    V::store(x + i, V::add(before, V::mul(v, V::broadcast(scales[i / kBlock]))));
  });
}

template <typename V>
void keys_from_q80(const int8_t* q, const float* scales, size_t head_size, size_t stride,
                   float* x) {
  for (size_t i = 0; i < head_size; ++i, q += stride, x += stride) {
    const float* scale = scales + i / kBlock * stride;
    visit_int8<V>(q, stride, [&](size_t s, typename V::Float v) {
      V::store(x + s, V::mul(v, V::load(scale + s)));
    });
  }
}

}  // namespace
}  // namespace hearth
