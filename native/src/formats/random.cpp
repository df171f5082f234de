#include <algorithm>
#include <array>
#include <cmath>
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

// 32 random bytes for part `part` of row `row`, of 32 columns.
std::array<uint8_t, kBlock> part_bytes(uint64_t seed, uint64_t row, uint64_t part) {
  const uint64_t key = mix(seed + 0x9e3779b97f4a7c15ull * (row + 1));
  std::array<uint8_t, kBlock> bytes;
  for (uint64_t i = 0; i < kBlock / 8; ++i) {
    const uint64_t word = mix(key + 0x9e3779b97f4a7c15ull * (part * 4 + i + 1));
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  return bytes;
}

// Standard deviation of a uniform int8, and of uniform codes of 2 to 6 bits: sqrt((n^2 - 1) / 12);
// of three bits the root of the mean square, because they are not centered.
constexpr float kByteDeviation = 73.9f;
constexpr float kTwoBits = 1.118f, kThreeBits = 2.345f, kNibbleDeviation = 4.61f, kFiveBits = 9.23f,
                kSixBits = 18.47f;
// Of the values of iq4_nl, and of the doubled ones of mxfp4.
constexpr float kUnevenDeviation = 67.4f, kFloat4Deviation = 5.852f;

void set_f16(uint8_t* at, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(at, &half, 2);
}

// Six-bit scales of 32, and minima that center codes around 0 (q4_k, q5_k).
void set_six_bits(uint8_t* packed, uint8_t minimum) {
  std::memset(packed, 32 | 2 << 6, 4);
  std::memset(packed + 4, minimum | minimum >> 4 << 6, 4);
  std::memset(packed + 8, (minimum & 15) << 4, 4);
}

// A power of two in each block, of which so many are twice as large that the deviation is right.
void set_exponent(uint8_t* block, float deviation, uint8_t random) {
  const float wanted = deviation / kFloat4Deviation;
  const int exponent = wanted > 0.0f ? std::ilogb(wanted) : -128;
  const float over = wanted > 0.0f ? std::ldexp(wanted, -exponent) : 1.0f;
  const bool twice = static_cast<float>(random) < 256.0f * (over * over - 1.0f) / 3.0f;
  block[0] = static_cast<uint8_t>(std::clamp(exponent + 128 + (twice ? 1 : 0), 0, 254));
}

// The scales of a block whose other bytes are random.
void set_scales(Type type, float deviation, uint8_t* block) {
  switch (type) {
    case Type::q80:
      return set_f16(block, deviation / kByteDeviation);
    case Type::q40:
      return set_f16(block, deviation / kNibbleDeviation);
    case Type::q4_1:
      set_f16(block, deviation / kNibbleDeviation);
      return set_f16(block + 2, -7.5f * deviation / kNibbleDeviation);
    case Type::q5_0:
      return set_f16(block, deviation / kFiveBits);
    case Type::q5_1:
      set_f16(block, deviation / kFiveBits);
      return set_f16(block + 2, -15.5f * deviation / kFiveBits);
    case Type::q2_k:  // 8 x 1.5 = 12
      std::memset(block, 8 | 12 << 4, 16);
      set_f16(block + 80, deviation / 8 / kTwoBits);
      return set_f16(block + 82, deviation / 8 / kTwoBits);
    case Type::q3_k:  // scales of 48 - 32
      std::memset(block + 96, 0, 8);
      std::memset(block + 104, 0xff, 4);
      return set_f16(block + 108, deviation / 16 / kThreeBits);
    case Type::q4_k:  // 32 x 7.5 = 4 x 60
      set_six_bits(block + 4, 60);
      set_f16(block, deviation / 32 / kNibbleDeviation);
      return set_f16(block + 2, deviation / 8 / kNibbleDeviation);
    case Type::q5_k:  // 32 x 15.5 = 8 x 62
      set_six_bits(block + 4, 62);
      set_f16(block, deviation / 32 / kFiveBits);
      return set_f16(block + 2, deviation / 4 / kFiveBits);
    case Type::q6_k:
      std::memset(block + 192, 64, 16);
      return set_f16(block + 208, deviation / 64 / kSixBits);
    case Type::iq4_nl:
      return set_f16(block, deviation / kUnevenDeviation);
    case Type::iq4_xs:  // scales of 48 - 32
      std::memset(block + 2, 0xff, 2);
      std::memset(block + 4, 0, 4);
      return set_f16(block, deviation / 16 / kUnevenDeviation);
    case Type::mxfp4:
    case Type::f32:
    case Type::f16:
    case Type::bf16:
      return;
  }
}

// Where the random bytes go: behind the scale of a block of 32, or from the first byte on.
size_t first_random(Type type) {
  if (type == Type::q80 || type == Type::q40) return 2;
  return type == Type::mxfp4 ? 1 : 0;
}

// The block that begins at part `part`.
void random_block(Type type, uint64_t seed, uint64_t row, uint64_t part, float deviation,
                  uint8_t* out) {
  const TypeInfo& info = info_of(type);
  const size_t skip = first_random(type);
  for (size_t p = 0; p * kBlock < info.block; ++p) {
    const auto bytes = part_bytes(seed, row, part + p);
    const size_t at = skip + p * kBlock;
    if (at < info.block_bytes)
      std::memcpy(out + at, bytes.data(), std::min(kBlock, info.block_bytes - at));
    if (type == Type::mxfp4) set_exponent(out, deviation, bytes[kBlock - 1]);
  }
  set_scales(type, deviation, out);
}

void set_float(Type type, float value, uint8_t* out) {
  const uint16_t bits = type == Type::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
  if (type == Type::f32)
    std::memcpy(out, &value, 4);
  else
    std::memcpy(out, &bits, 2);
}

}  // namespace

void random_rows(Type type, const RandomCut& cut, uint8_t* out) {
  const TypeInfo& info = info_of(type);
  const size_t end = cut.column_begin + cut.columns;
  row_bytes(type, cut.columns);  // whole blocks
  if (cut.column_begin % info.block != 0) {
    throw std::invalid_argument("a cut of a quantized row begins on a block of " +
                                std::to_string(info.block) + " columns, not at column " +
                                std::to_string(cut.column_begin));
  }
  for (size_t r = 0; r < cut.rows; ++r) {
    const uint64_t row = cut.row_begin + r;
    if (is_quantized(type)) {
      for (size_t c = cut.column_begin; c < end; c += info.block, out += info.block_bytes)
        random_block(type, cut.seed, row, c / kBlock, cut.scale, out);
      continue;
    }
    for (size_t c = cut.column_begin; c < end;) {
      const auto bytes = part_bytes(cut.seed, row, c / kBlock);
      const size_t stop = std::min(end, (c / kBlock + 1) * kBlock);
      for (; c < stop; ++c, out += info.block_bytes) {
        const auto byte = static_cast<int8_t>(bytes[c % kBlock]);
        set_float(type, cut.scale / kByteDeviation * static_cast<float>(byte), out);
      }
    }
  }
}

}  // namespace hearth
