#include "hearth/quant.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "formats/names.h"

namespace hearth {

namespace {

constexpr Named<Type> kTypes[] = {
    {"f32", Type::f32}, {"f16", Type::f16}, {"q8_0", Type::q80}, {"q4_0", Type::q40}};

}  // namespace

std::string_view current_name(std::string_view name) {
  return name == "q80" ? "q8_0" : name == "q40" ? "q4_0" : name;
}

Type parse_type(std::string_view name) {
  return parse_name("weight type", kTypes, current_name(name));
}

std::string_view type_name(Type type) {
  for (const Named<Type>& each : kTypes) {
    if (each.value == type) return each.name;
  }
  return "?";
}

size_t row_bytes(Type type, size_t columns) {
  if (columns > kMostColumns) {
    throw std::invalid_argument("a row of " + std::to_string(columns) + " columns, more than " +
                                std::to_string(kMostColumns));
  }
  if (is_quantized(type) && columns % kBlock != 0) {
    throw std::invalid_argument("a row of " + std::to_string(columns) + " columns cannot be " +
                                std::string(type_name(type)) + ": blocks have " +
                                std::to_string(kBlock) + " columns");
  }
  switch (type) {
    case Type::f32:
      return columns * 4;
    case Type::f16:
      return columns * 2;
    case Type::q80:
      return columns / kBlock * kQ80BlockBytes;
    case Type::q40:
      return columns / kBlock * kQ40BlockBytes;
  }
  return 0;
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 puts the wanted bits at the end of the mantissa,
    // rounded by the addition itself.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Exponent and mantissa in their places; the product adds 112 to the exponent, of a subnormal
  // too. No branches: loops over halves become vector code.
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000u | magnitude << 13;  // infinity and NaN
  return std::bit_cast<float>(sign | (magnitude < 0x7c00u ? finite : special));
}

namespace {

void store_f16(uint8_t* out, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(out, &half, 2);
}

float load_f16(const uint8_t* in) {
  uint16_t half;
  std::memcpy(&half, in, 2);
  return f16_to_f32(half);
}

// 1 / scale, or 0 where that would be infinite: such a block is all zeros.
float inverse_of(float scale) {
  return std::abs(scale) >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f;
}

// NaN would break the comparison and with it the whole block: it counts as 0.
float finite_or_zero(float x) { return std::isfinite(x) ? x : 0.0f; }

// Loops that compilers turn into vector code: magnitudes are compared as integers, and rounded to
// even by adding 1.5 * 2^23.
void quantize_q80_block(const float* x, uint8_t* out) {
  float finite[kBlock];
  int32_t bits = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t magnitude = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
    finite[i] = magnitude < 0x7f800000 ? x[i] : 0.0f;
    bits = std::max(bits, magnitude < 0x7f800000 ? magnitude : 0);
  }
  const float scale = std::bit_cast<float>(bits) / 127.0f;
  const float inverse = inverse_of(scale);
  store_f16(out, scale);
  for (size_t i = 0; i < kBlock; ++i) {
    const float rounded = finite[i] * inverse + 0x1.8p23f;
    const int32_t q = std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(0x1.8p23f);
    out[2 + i] = static_cast<uint8_t>(std::clamp(q, -127, 127));
  }
}

void quantize_q40_block(const float* x, uint8_t* out) {
  float extreme = 0.0f;
  for (size_t i = 0; i < kBlock; ++i) {
    if (std::abs(finite_or_zero(x[i])) > std::abs(extreme)) extreme = x[i];
  }
  const float scale = extreme / -8.0f;
  const float inverse = inverse_of(scale);
  store_f16(out, scale);
  const auto nibble = [&](float value) {
    return static_cast<uint32_t>(
        std::clamp(std::floor(finite_or_zero(value) * inverse + 8.5f), 0.0f, 15.0f));
  };
  for (size_t i = 0; i < kBlock / 2; ++i) {
    out[2 + i] = static_cast<uint8_t>(nibble(x[i]) | nibble(x[i + kBlock / 2]) << 4);
  }
}

}  // namespace

void quantize_row(Type type, const float* x, size_t columns, uint8_t* out) {
  if (columns == 0) return;  // memcpy must not get null pointers
  switch (type) {
    case Type::f32:
      std::memcpy(out, x, columns * 4);
      return;
    case Type::f16:
      for (size_t i = 0; i < columns; ++i) store_f16(out + 2 * i, x[i]);
      return;
    case Type::q80:
      for (size_t b = 0; b < columns / kBlock; ++b)
        quantize_q80_block(x + b * kBlock, out + b * kQ80BlockBytes);
      return;
    case Type::q40:
      for (size_t b = 0; b < columns / kBlock; ++b)
        quantize_q40_block(x + b * kBlock, out + b * kQ40BlockBytes);
      return;
  }
}

void dequantize_row(Type type, const uint8_t* in, size_t columns, float* out) {
  if (columns == 0) return;
  switch (type) {
    case Type::f32:
      std::memcpy(out, in, columns * 4);
      return;
    case Type::f16:
      for (size_t i = 0; i < columns; ++i) out[i] = load_f16(in + 2 * i);
      return;
    case Type::q80:
      for (size_t b = 0; b < columns / kBlock; ++b, in += kQ80BlockBytes, out += kBlock) {
        const float scale = load_f16(in);
        for (size_t i = 0; i < kBlock; ++i)
          out[i] = scale * static_cast<float>(static_cast<int8_t>(in[2 + i]));
      }
      return;
    case Type::q40:
      for (size_t b = 0; b < columns / kBlock; ++b, in += kQ40BlockBytes, out += kBlock) {
        const float scale = load_f16(in);
        for (size_t i = 0; i < kBlock / 2; ++i) {
          out[i] = scale * static_cast<float>((in[2 + i] & 15) - 8);
          out[i + kBlock / 2] = scale * static_cast<float>((in[2 + i] >> 4) - 8);
        }
      }
      return;
  }
}

}  // namespace hearth
