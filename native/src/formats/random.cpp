#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "hearth/quant.h"

namespace hearth {
namespace {

// SplitMix64's finalizer (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
// 2014).
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// 32 random bytes for block `block` of row `row`.
std::array<uint8_t, kBlock> block_bytes(uint64_t seed, uint64_t row, uint64_t block) {
  const uint64_t key = mix(seed + 0x9e3779b97f4a7c15ull * (row + 1));
  std::array<uint8_t, kBlock> bytes;
  for (uint64_t i = 0; i < kBlock / 8; ++i) {
    const uint64_t word = mix(key + 0x9e3779b97f4a7c15ull * (block * 4 + i + 1));
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  return bytes;
}

// Standard deviation of a uniform int8, and of a uniform nibble (0..15): sqrt((n^2 - 1) / 12).
constexpr float kByteDeviation = 73.9f;
constexpr float kNibbleDeviation = 4.61f;

}  // namespace

void random_rows(Type type, const RandomCut& cut, uint8_t* out) {
  const size_t stride = row_bytes(type, cut.columns);
  if (is_quantized(type) && cut.column_begin % kBlock != 0) {
    throw std::invalid_argument("a cut of a quantized row begins on a block of " +
                                std::to_string(kBlock) + " columns, not at column " +
                                std::to_string(cut.column_begin));
  }
  const uint16_t byte_scale = f32_to_f16(cut.scale / kByteDeviation);
  const uint16_t nibble_scale = f32_to_f16(cut.scale / kNibbleDeviation);
  for (size_t r = 0; r < cut.rows; ++r, out += stride) {
    const uint64_t row = cut.row_begin + r;
    uint8_t* cursor = out;
    size_t column = cut.column_begin;
    const size_t end = cut.column_begin + cut.columns;
    while (column < end) {
      const size_t block = column / kBlock;
      const size_t first = column % kBlock;
      const size_t count = std::min(kBlock - first, end - column);
      const auto bytes = block_bytes(cut.seed, row, block);
      switch (type) {
        case Type::q40:
          std::memcpy(cursor, &nibble_scale, 2);
          std::memcpy(cursor + 2, bytes.data(), kBlock / 2);
          cursor += kQ40BlockBytes;
          break;
        case Type::q80:
          std::memcpy(cursor, &byte_scale, 2);
          std::memcpy(cursor + 2, bytes.data(), kBlock);
          cursor += kQ80BlockBytes;
          break;
        case Type::f16:
        case Type::f32:
          for (size_t i = first; i < first + count; ++i) {
            const float value =
                cut.scale / kByteDeviation * static_cast<float>(static_cast<int8_t>(bytes[i]));
            if (type == Type::f32) {
              std::memcpy(cursor, &value, 4);
              cursor += 4;
            } else {
              const uint16_t half = f32_to_f16(value);
              std::memcpy(cursor, &half, 2);
              cursor += 2;
            }
          }
          break;
      }
      column += count;
    }
  }
}

}  // namespace hearth
