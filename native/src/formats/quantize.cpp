#include "formats/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/block_values.h"
#include "hearth/quant.h"

namespace hearth {
namespace quantizers {

float inverse_of(float scale) {
  return std::abs(scale) >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f;
}

int nearest(float value, int low, int high) {
  const float limited =
      std::max(static_cast<float>(low), std::min(static_cast<float>(high), value));
  return static_cast<int>(std::nearbyint(limited));
}

void store_f16(uint8_t* out, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(out, &half, 2);
}

float stored(float value) { return f16_to_f32(f32_to_f16(value)); }

namespace {

// Weight of an element's error: more for those that are large.
class Importance {
 public:
  Importance(const float* x, size_t count) {
    float squares = 0.0f;
    for (size_t i = 0; i < count; ++i) squares += x[i] * x[i];
    rms_ = std::sqrt(squares / static_cast<float>(count));
  }
  float operator()(float x) const { return rms_ + std::abs(x); }

 private:
  float rms_;
};

float extreme_of(const float* x, size_t count) {
  float extreme = 0.0f;
  for (size_t i = 0; i < count; ++i) {
    if (std::abs(x[i]) > std::abs(extreme)) extreme = x[i];
  }
  return extreme;
}

// Of candidate inverse scales the best after a least-squares fit: code(value) rounds x over a
// scale.
template <typename Code, typename Candidate>
float best_scale(const float* x, size_t count, int candidates, Candidate candidate, Code code) {
  const Importance importance(x, count);
  float best = 0.0f, gain = 0.0f;
  for (int i = -candidates; i <= candidates; ++i) {
    const float inverse = candidate(static_cast<float>(i));
    float products = 0.0f, squares = 0.0f;
    for (size_t k = 0; k < count; ++k) {
      const float value = code(x[k] * inverse), weight = importance(x[k]);
      products += weight * x[k] * value;
      squares += weight * value * value;
    }
    // The error that this scale takes away from that of zeros.
    if (squares > 0.0f && products * products > gain * squares) {
      gain = products * products / squares;
      best = products / squares;
    }
  }
  return best;
}

}  // namespace

float fit_scale(const float* x, size_t count, int most) {
  const float extreme = extreme_of(x, count), inverse = inverse_of(extreme);
  if (inverse == 0.0f) return 0.0f;
  const auto levels = static_cast<float>(most + 1);
  return best_scale(
      x, count, 9, [&](float step) { return -(levels + 0.1f * step) * inverse; },
      [&](float value) { return static_cast<float>(nearest(value, -most - 1, most)); });
}

float fit_values(const float* x, size_t count, const int8_t (&values)[16]) {
  const float inverse = inverse_of(extreme_of(x, count));
  if (inverse == 0.0f) return 0.0f;
  return best_scale(
      x, count, 7, [&](float step) { return (static_cast<float>(values[0]) + step) * inverse; },
      [&](float value) { return static_cast<float>(values[nearest_value(value, values)]); });
}

uint8_t nearest_value(float value, const int8_t (&values)[16]) {
  uint8_t best = 0;
  float least = std::numeric_limits<float>::infinity();
  for (uint8_t i = 0; i < 16; ++i) {
    const float distance = std::abs(value - static_cast<float>(values[i]));
    if (distance < least) {
      least = distance;
      best = i;
    }
  }
  return best;
}

ScaleAndMinimum fit_minimum(const float* x, size_t count, int most) {
  const auto [low, high] = std::minmax_element(x, x + count);
  const float minimum = std::min(*low, 0.0f), range = *high - minimum;
  if (inverse_of(range) == 0.0f) return {0.0f, minimum};
  const Importance importance(x, count);
  ScaleAndMinimum best = {range / static_cast<float>(most), minimum};
  float least = std::numeric_limits<float>::infinity();
  for (int step = -10; step <= 10; ++step) {
    const float inverse = (static_cast<float>(most) + 0.1f * static_cast<float>(step)) / range;
    // Weighted least squares of x = scale * code + minimum.
    float weights = 0.0f, codes = 0.0f, squares = 0.0f, values = 0.0f, products = 0.0f;
    for (size_t i = 0; i < count; ++i) {
      const auto code = static_cast<float>(nearest((x[i] - minimum) * inverse, 0, most));
      const float weight = importance(x[i]);
      weights += weight;
      codes += weight * code;
      squares += weight * code * code;
      values += weight * x[i];
      products += weight * x[i] * code;
    }
    const float determinant = weights * squares - codes * codes;
    ScaleAndMinimum fit = {1.0f / inverse, minimum};
    if (determinant > 0.0f) {
      fit = {(weights * products - codes * values) / determinant,
             (squares * values - codes * products) / determinant};
    }
    if (fit.minimum > 0.0f || determinant <= 0.0f) {
      if (squares <= 0.0f) continue;
      fit = {products / squares, 0.0f};
    }
    float error = 0.0f;
    for (size_t i = 0; i < count; ++i) {
      const auto code =
          static_cast<float>(nearest((x[i] - fit.minimum) * inverse_of(fit.scale), 0, most));
      const float difference = fit.scale * code + fit.minimum - x[i];
      error += importance(x[i]) * difference * difference;
    }
    if (error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

}  // namespace quantizers

namespace {

using quantizers::inverse_of;
using quantizers::store_f16;

float finite_or_zero(float x) { return std::isfinite(x) ? x : 0.0f; }

// Loops that compilers turn into vector code: magnitudes are compared as integers, and rounded to
// even by adding 1.5 * 2^23.
void quantize_q80(const float* x, uint8_t* out) {
  int32_t bits = 0;
  for (size_t i = 0; i < kBlock; ++i)
    bits = std::max(bits, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  const float scale = std::bit_cast<float>(bits) / 127.0f;
  const float inverse = inverse_of(scale);
  store_f16(out, scale);
  for (size_t i = 0; i < kBlock; ++i) {
    const float rounded = x[i] * inverse + 0x1.8p23f;
    const int32_t q = std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(0x1.8p23f);
    out[2 + i] = static_cast<uint8_t>(std::clamp(q, -127, 127));
  }
}

void quantize_q40(const float* x, uint8_t* out) {
  const float scale = quantizers::extreme_of(x, kBlock) / -8.0f;
  const float inverse = inverse_of(scale);
  store_f16(out, scale);
  const auto nibble = [&](float value) {
    return static_cast<uint32_t>(std::clamp(std::floor(value * inverse + 8.5f), 0.0f, 15.0f));
  };
  for (size_t i = 0; i < kBlock / 2; ++i)
    out[2 + i] = static_cast<uint8_t>(nibble(x[i]) | nibble(x[i + kBlock / 2]) << 4);
}

// Codes in [0, most], fifth bits apart where there are any.
void store_codes(const uint8_t (&codes)[kBlock], uint8_t* fifths, uint8_t* nibbles) {
  uint32_t high = 0;
  for (size_t i = 0; i < kBlock; ++i) high |= static_cast<uint32_t>(codes[i] >> 4) << i;
  if (fifths != nullptr) std::memcpy(fifths, &high, 4);
  for (size_t i = 0; i < kBlock / 2; ++i)
    nibbles[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + kBlock / 2] & 15) << 4);
}

// The range of the elements in `most` steps (q4_1, q5_1).
void quantize_range(const float* x, int most, uint8_t* out, uint8_t* fifths, uint8_t* nibbles) {
  const auto [low, high] = std::minmax_element(x, x + kBlock);
  const float minimum = *low, scale = (*high - minimum) / static_cast<float>(most);
  const float inverse = inverse_of(scale);
  uint8_t codes[kBlock];
  for (size_t i = 0; i < kBlock; ++i)
    codes[i] = static_cast<uint8_t>(quantizers::nearest((x[i] - minimum) * inverse, 0, most));
  store_f16(out, scale);
  store_f16(out + 2, minimum);
  store_codes(codes, fifths, nibbles);
}

void quantize_q5_0(const float* x, uint8_t* out) {
  const float scale = quantizers::extreme_of(x, kBlock) / -16.0f, inverse = inverse_of(scale);
  uint8_t codes[kBlock];
  for (size_t i = 0; i < kBlock; ++i)
    codes[i] = static_cast<uint8_t>(quantizers::nearest(x[i] * inverse, -16, 15) + 16);
  store_f16(out, scale);
  store_codes(codes, out + 2, out + 6);
}

void quantize_iq4_nl(const float* x, uint8_t* out) {
  const float scale = quantizers::stored(quantizers::fit_values(x, kBlock, kUnevenValues));
  const float inverse = inverse_of(scale);
  uint8_t codes[kBlock];
  for (size_t i = 0; i < kBlock; ++i)
    codes[i] = quantizers::nearest_value(x[i] * inverse, kUnevenValues);
  store_f16(out, scale);
  store_codes(codes, nullptr, out + 2);
}

// The exponent with which the largest magnitude is within the values' last binade (OCP Microscaling
// Formats 1.0, 6.3).
void quantize_mxfp4(const float* x, uint8_t* out) {
  const float extreme = std::abs(quantizers::extreme_of(x, kBlock));
  const int exponent = extreme > 0.0f ? std::clamp(std::ilogb(extreme) - 2, -127, 127) : -127;
  const float inverse = std::ldexp(1.0f, 1 - exponent);  // the values are doubled
  uint8_t codes[kBlock];
  for (size_t i = 0; i < kBlock; ++i)
    codes[i] = quantizers::nearest_value(x[i] * inverse, kFloat4Values);
  out[0] = static_cast<uint8_t>(exponent + 127);
  store_codes(codes, nullptr, out + 1);
}

}  // namespace

void quantize_block(Type type, const float* x, uint8_t* out) {
  float finite[kLargestBlock];
  for (size_t i = 0; i < info_of(type).block; ++i) finite[i] = finite_or_zero(x[i]);
  switch (type) {
    case Type::q80:
      return quantize_q80(finite, out);
    case Type::q40:
      return quantize_q40(finite, out);
    case Type::q4_1:
      return quantize_range(finite, 15, out, nullptr, out + 4);
    case Type::q5_0:
      return quantize_q5_0(finite, out);
    case Type::q5_1:
      return quantize_range(finite, 31, out, out + 4, out + 8);
    case Type::q2_k:
      return quantizers::q2_k(finite, out);
    case Type::q3_k:
      return quantizers::q3_k(finite, out);
    case Type::q4_k:
      return quantizers::q4_k(finite, out);
    case Type::q5_k:
      return quantizers::q5_k(finite, out);
    case Type::q6_k:
      return quantizers::q6_k(finite, out);
    case Type::iq4_nl:
      return quantize_iq4_nl(finite, out);
    case Type::iq4_xs:
      return quantizers::iq4_xs(finite, out);
    case Type::mxfp4:
      return quantize_mxfp4(finite, out);
    case Type::f32:
    case Type::f16:
    case Type::bf16:
      return;
  }
}

}  // namespace hearth
