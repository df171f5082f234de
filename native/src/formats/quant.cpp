#include "hearth/quant.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "formats/block_codecs.h"
#include "formats/quantize.h"

namespace hearth {

std::string_view current_name(std::string_view name) {
  return name == "q80" ? "q8_0" : name == "q40" ? "q4_0" : name;
}

Type parse_type(std::string_view name) {
  const std::string_view current = current_name(name);
  std::string names;
  for (const TypeInfo& each : kTypeInfos) {
    if (each.name == current) return each.type;
    names.append(names.empty() ? "" : ", ").append(each.name);
  }
  throw std::invalid_argument("unknown weight type '" + std::string(name.substr(0, 32)) +
                              "': there are " + names);
}

size_t row_bytes(Type type, size_t columns) {
  if (columns > kMostColumns) {
    throw std::invalid_argument("a row of " + std::to_string(columns) + " columns, more than " +
                                std::to_string(kMostColumns));
  }
  const TypeInfo& info = info_of(type);
  if (columns % info.block != 0) {
    throw std::invalid_argument("a row of " + std::to_string(columns) + " columns cannot be " +
                                std::string(info.name) + ": blocks have " +
                                std::to_string(info.block) + " columns");
  }
  return columns / info.block * info.block_bytes;
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

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

namespace {

uint16_t load_u16(const uint8_t* in) {
  uint16_t bits;
  std::memcpy(&bits, in, 2);
  return bits;
}

float load_f16(const uint8_t* in) { return f16_to_f32(load_u16(in)); }

float load_bf16(const uint8_t* in) { return bf16_to_f32(load_u16(in)); }

// Of a block of a quantized type, as BlockPart says.
void dequantize_block(Type type, const uint8_t* in, float* out) {
  BlockPart parts[kLargestBlock / kBlock];
  decode_block(type, in, parts);
  const bool minimum = has_minimum(type);
  for (size_t c = 0; c < info_of(type).block; ++c) {
    const BlockPart& part = parts[c / kBlock];
    const size_t half = c % kBlock / (kBlock / 2);
    const float scale = part.scale * static_cast<float>(part.scales[half]);
    const float product = scale * static_cast<float>(part.codes[c % kBlock]);
    const float least = part.minimum * static_cast<float>(part.minima[half]);
    out[c] = minimum ? product + least : product;
  }
}

}  // namespace

void quantize_row(Type type, const float* x, size_t columns, uint8_t* out) {
  if (columns == 0) return;  // memcpy must not get null pointers
  const TypeInfo& info = info_of(type);
  if (info.block > 1) {
    for (size_t c = 0; c < columns; c += info.block, out += info.block_bytes)
      quantize_block(type, x + c, out);
    return;
  }
  if (type == Type::f32) {
    std::memcpy(out, x, columns * 4);
    return;
  }
  for (size_t i = 0; i < columns; ++i) {
    const uint16_t bits = type == Type::f16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

void dequantize_row(Type type, const uint8_t* in, size_t columns, float* out) {
  if (columns == 0) return;
  const TypeInfo& info = info_of(type);
  if (info.block > 1) {
    for (size_t c = 0; c < columns; c += info.block, in += info.block_bytes)
      dequantize_block(type, in, out + c);
    return;
  }
  if (type == Type::f32) {
    std::memcpy(out, in, columns * 4);
  } else if (type == Type::f16) {
    for (size_t i = 0; i < columns; ++i) out[i] = load_f16(in + 2 * i);
  } else {
    for (size_t i = 0; i < columns; ++i) out[i] = load_bf16(in + 2 * i);
  }
}

}  // namespace hearth
