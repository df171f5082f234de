// The definition of every kernel, in plain code. Orders of summation and fused multiply-adds are
// spelled out, because the vector variants must give the same bits.
#include "hearth/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/block_codecs.h"
#include "hearth/quant.h"
#include "platform/fused.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

float half_at(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  return f16_to_f32(half);
}

void quantize(const float* x, size_t columns, int8_t* q, float* scales, HalfSums* sums) {
  for (size_t b = 0; b < columns / kBlock; ++b, x += kBlock, q += kBlock) {
    // Compared as bits, in which infinity is above every number and NaN above infinity.
    uint32_t top = 0;
    for (size_t i = 0; i < kBlock; ++i)
      top = std::max(top, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    const float largest = std::bit_cast<float>(top);
    if (!std::isfinite(largest)) {
      std::fill_n(q, kBlock, int8_t{0});
      scales[b] = std::numeric_limits<float>::quiet_NaN();
      sums[b] = {0, 0};
      continue;
    }
    const float inverse = largest >= kSmallestQuantized ? 127.0f / largest : 0.0f;
    int halves[2] = {};
    for (size_t i = 0; i < kBlock; ++i) {
      q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
      halves[i / (kBlock / 2)] += q[i];
    }
    scales[b] = largest / 127.0f;
    sums[b] = {static_cast<int16_t>(halves[0]), static_cast<int16_t>(halves[1])};
  }
}

// Even and odd columns are summed apart and then added.
template <typename Load>
void matmul_floats(const MatmulArgs& a, const float* activations, size_t bytes, Load load) {
  for (size_t r = 0; r < a.rows; ++r) {
    const uint8_t* group = a.weights + r / kGroupRows * a.group_bytes + r % kGroupRows * bytes;
    for (size_t t = 0; t < a.tokens; ++t) {
      const float* x = activations + t * a.columns;
      float sums[2] = {0.0f, 0.0f};
      for (size_t c = 0; c < a.columns; ++c) {
        sums[c % 2] = fused(load(group + c * kGroupRows * bytes), x[c], sums[c % 2]);
      }
      a.y[t * a.y_stride + r] = sums[0] + sums[1];
    }
  }
}

void matmul_f32(const MatmulArgs& a, const float* x) {
  matmul_floats(a, x, 4, [](const uint8_t* at) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  });
}

void matmul_f16(const MatmulArgs& a, const float* x) { matmul_floats(a, x, 2, half_at); }

void matmul_bf16(const MatmulArgs& a, const float* x) {
  matmul_floats(a, x, 2, [](const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bf16_to_f32(bits);
  });
}

// The integer sum of a part, which is exact, also as a float.
float part_value(const BlockPart& part, const int8_t* q) {
  int32_t whole = 0;
  for (size_t i = 0; i < kBlock; ++i) whole += part.scales[i / (kBlock / 2)] * part.codes[i] * q[i];
  return static_cast<float>(whole);
}

// Blocks of 32: one fused multiply-add in f32, and one of the minimum.
template <bool kMinimum>
float add_small_block(const BlockPart& part, const int8_t* q, float x_scale, HalfSums sums,
                      float y) {
  y = fused(part_value(part, q), part.scale * x_scale, y);
  if (!kMinimum) return y;
  return fused(part.minimum, x_scale * static_cast<float>(sums.first + sums.second), y);
}

// The minima of a part, times the sums of the activations: one, or one of each half.
template <bool kHalves>
float add_minima(const BlockPart& part, float x_scale, HalfSums sums, float least) {
  const auto add = [&](int32_t minimum, int sum) {
    least = fused(static_cast<float>(minimum), x_scale * static_cast<float>(sum), least);
  };
  if (!kHalves) {
    add(part.minima[0], sums.first + sums.second);
  } else {
    add(part.minima[0], sums.first);
    add(part.minima[1], sums.second);
  }
  return least;
}

template <Type kType, bool kMinimum>
void matmul_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  constexpr TypeInfo info = info_of(kType);
  constexpr size_t kParts = info.block / kBlock;
  const std::span<const Piece> pieces = pieces_of(kType);
  const size_t parts = a.columns / kBlock;
  for (size_t r = 0; r < a.rows; ++r) {
    for (size_t t = 0; t < a.tokens; ++t) a.y[t * a.y_stride + r] = 0.0f;
    const uint8_t* packed = a.weights + r / kGroupRows * a.group_bytes;
    for (size_t b = 0; b < parts; b += kParts) {
      uint8_t bytes[kLargestBlockBytes];
      BlockPart block[kLargestBlock / kBlock];
      unpack_lane(pieces, packed, r % kGroupRows, bytes);
      packed += kGroupRows * info.block_bytes;
      decode_block(kType, bytes, block);
      for (size_t t = 0; t < a.tokens; ++t) {
        float& y = a.y[t * a.y_stride + r];
        const size_t at = t * parts + b;
        if (kParts == 1) {
          y = add_small_block<kMinimum>(block[0], x.q + at * kBlock, x.scales[at], x.sums[at], y);
          continue;
        }
        // The parts of a large block are added up before its scale and minimum come in.
        float products = 0.0f, least = 0.0f;
        for (size_t p = 0; p < kParts; ++p) {
          const float x_scale = x.scales[at + p];
          products = fused(part_value(block[p], x.q + (at + p) * kBlock), x_scale, products);
          if (kMinimum)
            least = add_minima<kType == Type::q2_k>(block[p], x_scale, x.sums[at + p], least);
        }
        y = fused(block[0].scale, products, y);
        if (kMinimum) y = fused(block[0].minimum, least, y);
      }
    }
  }
}

void rms_norm(const float* x, const float* weight, size_t size, float epsilon, float* y) {
  // Eight sums, as a vector of eight floats has them, then in order.
  float sums[8] = {};
  for (size_t i = 0; i < size; ++i) sums[i % 8] = fused(x[i], x[i], sums[i % 8]);
  float sum = 0.0f;
  for (float each : sums) sum += each;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
  for (size_t i = 0; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

void add(float* x, const float* y, size_t size) {
  for (size_t i = 0; i < size; ++i) x[i] += y[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, size_t size, float epsilon,
                float* y) {
  // Eight sums each, as a vector of eight floats has them, then in order.
  float sums[8] = {}, squares[8] = {};
  for (size_t i = 0; i < size; ++i) sums[i % 8] += x[i];
  float mean = 0.0f, variance = 0.0f;
  for (float each : sums) mean += each;
  mean /= static_cast<float>(size);
  for (size_t i = 0; i < size; ++i)
    squares[i % 8] = fused(x[i] - mean, x[i] - mean, squares[i % 8]);
  for (float each : squares) variance += each;
  const float scale = 1.0f / std::sqrt(variance / static_cast<float>(size) + epsilon);
  for (size_t i = 0; i < size; ++i) y[i] = fused((x[i] - mean) * scale, weight[i], bias[i]);
}

template <typename Function>
void activate(float* gate, const float* up, size_t size, Function function) {
  for (size_t i = 0; i < size; ++i) {
    const float value = function(gate[i]);
    gate[i] = up == nullptr ? value : value * up[i];
  }
}

void silu(float* gate, const float* up, size_t size) {
  activate(gate, up, size, [](float x) { return x / (1.0f + std::exp(-x)); });
}

void gelu_tanh(float* gate, const float* up, size_t size) {
  activate(gate, up, size, [](float x) {
    const float inner = x * fused(x * x, kGeluCubic, 1.0f);
    return x / (1.0f + std::exp(-kGeluFactor * inner));
  });
}

void gelu(float* gate, const float* up, size_t size) {
  activate(gate, up, size, [](float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); });
}

void relu_squared(float* gate, const float* up, size_t size) {
  activate(gate, up, size, [](float x) {
    const float positive = std::max(x, 0.0f);
    return positive * positive;
  });
}

void rope(float* head, const float* cos, const float* sin, size_t half) {
  for (size_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

void delta_rule(const DeltaArgs& a) {
  for (size_t t = 0; t < a.tokens; ++t) {
    const float *query = a.queries + t * a.key_size, *key = a.keys + t * a.key_size;
    for (size_t column = 0; column < a.value_size; ++column) {
      float* state = a.state + column;
      float sum = 0.0f;
      for (size_t i = 0; i < a.key_size; ++i) sum = fused(key[i], state[i * a.value_size], sum);
      const size_t at = t * a.value_size + column;
      const float delta = a.beta[t] * fused(-a.decay[t], sum, a.values[at]);
      float out = 0.0f;
      for (size_t i = 0; i < a.key_size; ++i) {
        float& each = state[i * a.value_size];
        each = fused(key[i], delta, a.decay[t] * each);
        out = fused(query[i], each, out);
      }
      a.out[at] = out;
    }
  }
}

template <typename Number, typename Load>
void attend(const AttendArgs& a, Load load) {
  const auto* keys = static_cast<const Number*>(a.keys);
  const auto* values = static_cast<const Number*>(a.values);
  for (size_t h = 0; h < a.queries; ++h) {
    const float* q = a.q + h * a.key_size;
    float* scores = a.scratch + h * a.stride;
    float* out = a.out + h * a.value_size;
    float largest = a.largest[h];
    for (size_t s = 0; s < a.slots; ++s) {
      float score = 0.0f;
      for (size_t i = 0; i < a.key_size; ++i) score += q[i] * load(keys[i * a.stride + s]);
      if (a.softcap > 0.0f) score = a.softcap * std::tanh(score / a.softcap);
      scores[s] = score;
      largest = std::max(largest, score);
    }
    const float shrink = std::exp(a.largest[h] - largest);
    float sum = a.sum[h] * shrink;
    for (size_t i = 0; i < a.value_size; ++i) out[i] *= shrink;
    for (size_t s = 0; s < a.slots; ++s) {
      const float weight = std::exp(scores[s] - largest);
      sum += weight;
      for (size_t i = 0; i < a.value_size; ++i)
        out[i] += weight * load(values[s * a.value_size + i]);
    }
    a.largest[h] = largest;
    a.sum[h] = sum;
  }
}

void attend_f32(const AttendArgs& a) {
  attend<float>(a, [](float value) { return value; });
}

void attend_f16(const AttendArgs& a) { attend<uint16_t>(a, f16_to_f32); }

void to_f16(const float* x, size_t size, uint16_t* out) {
  for (size_t i = 0; i < size; ++i)
    out[i] = f32_to_f16(std::clamp(x[i], -kLargestHalf, kLargestHalf));
}

void from_f16(const uint16_t* in, size_t size, float* x, bool add) {
  for (size_t i = 0; i < size; ++i) x[i] = (add ? x[i] : 0.0f) + f16_to_f32(in[i]);
}

void from_q80(const int8_t* q, const float* scales, size_t size, float* x, bool add) {
  for (size_t i = 0; i < size; ++i)
    x[i] = (add ? x[i] : 0.0f) + static_cast<float>(q[i]) * scales[i / kBlock];
}

void keys_from_q80(const int8_t* q, const float* scales, size_t head_size, size_t stride,
                   float* x) {
  for (size_t i = 0; i < head_size; ++i) {
    for (size_t s = 0; s < stride; ++s) {
      const size_t at = i * stride + s;
      x[at] = static_cast<float>(q[at]) * scales[i / kBlock * stride + s];
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {
    .name = "scalar",
    .matmul_scratch = 0,
    .quantize = quantize,
    .matmul_floats = {matmul_f32, matmul_f16, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                      nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, matmul_bf16},
    .matmul_blocks = {nullptr, nullptr, matmul_blocks<Type::q80, false>,
                      matmul_blocks<Type::q40, false>, matmul_blocks<Type::q4_1, true>,
                      matmul_blocks<Type::q5_0, false>, matmul_blocks<Type::q5_1, true>,
                      matmul_blocks<Type::q2_k, true>, matmul_blocks<Type::q3_k, false>,
                      matmul_blocks<Type::q4_k, true>, matmul_blocks<Type::q5_k, true>,
                      matmul_blocks<Type::q6_k, false>, matmul_blocks<Type::iq4_nl, false>,
                      matmul_blocks<Type::iq4_xs, false>, matmul_blocks<Type::mxfp4, false>,
                      nullptr},
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .add = add,
    .activate = {silu, gelu_tanh, gelu, relu_squared},
    .rope = rope,
    .delta_rule = delta_rule,
    .attend_f32 = attend_f32,
    .attend_f16 = attend_f16,
    .to_f16 = to_f16,
    .from_f16 = from_f16,
    .from_q80 = from_q80,
    .keys_from_q80 = keys_from_q80,
};

}  // namespace hearth
