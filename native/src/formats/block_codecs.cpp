#include "formats/block_codecs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/block_values.h"
#include "hearth/quant.h"

namespace hearth {
namespace {

uint16_t load_u16(const uint8_t* in) {
  uint16_t value;
  std::memcpy(&value, in, 2);
  return value;
}

float load_half(const uint8_t* in) { return f16_to_f32(load_u16(in)); }

// A part of which only the codes matter, one scale and one minimum.
BlockPart plain(float scale, float minimum = 0.0f) {
  return {.scale = scale, .minimum = minimum, .scales = {1, 1}, .minima = {1, 1}, .codes = {}};
}

int low(uint8_t byte) { return byte & 15; }
int high(uint8_t byte) { return byte >> 4; }

// 16 bytes of nibbles: element j low, j + 16 high.
template <typename Value>
void set_nibbles(const uint8_t* bytes, Value value, BlockPart& part) {
  for (size_t j = 0; j < 16; ++j) {
    part.codes[j] = static_cast<int8_t>(value(low(bytes[j])));
    part.codes[j + 16] = static_cast<int8_t>(value(high(bytes[j])));
  }
}

// The same with fifth bits: bit j of a u32 is element j's.
void set_five_bits(const uint8_t* fifth, const uint8_t* nibbles, int offset, BlockPart& part) {
  set_nibbles(nibbles, [](int nibble) { return nibble; }, part);
  for (size_t j = 0; j < kBlock; ++j) {
    const int code = part.codes[j] | (fifth[j / 8] >> (j % 8) & 1) << 4;
    part.codes[j] = static_cast<int8_t>(code - offset);
  }
}

void decode_q80(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in));
  std::memcpy(parts[0].codes, in + 2, kBlock);
}

void decode_q40(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in));
  set_nibbles(in + 2, [](int nibble) { return nibble - 8; }, parts[0]);
}

// f16 scale, f16 minimum, nibbles.
void decode_q4_1(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in), load_half(in + 2));
  set_nibbles(in + 4, [](int nibble) { return nibble; }, parts[0]);
}

// f16 scale, fifth bits, nibbles.
void decode_q5_0(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in));
  set_five_bits(in + 2, in + 6, 16, parts[0]);
}

// f16 scale, f16 minimum, fifth bits, nibbles.
void decode_q5_1(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in), load_half(in + 2));
  set_five_bits(in + 4, in + 8, 0, parts[0]);
}

// Bits of q2_k and q3_k: of each half (32 bytes, 128 elements) byte l has elements l, l + 32, l +
// 64 and l + 96.
int bit_pair(const uint8_t* bytes, size_t part, size_t l) {
  return bytes[part / 4 * 32 + l] >> (part % 4 * 2) & 3;
}

// 16 bytes of (scale, minimum) nibbles for 16 elements each, 64 bytes of pairs of bits, two f16.
void decode_q2_k(const uint8_t* in, BlockPart* parts) {
  for (size_t p = 0; p < 8; ++p) {
    BlockPart& part = parts[p];
    part.scale = load_half(in + 80);
    part.minimum = -load_half(in + 82);
    for (size_t h = 0; h < 2; ++h) {
      part.scales[h] = low(in[2 * p + h]);
      part.minima[h] = high(in[2 * p + h]);
    }
    for (size_t l = 0; l < kBlock; ++l)
      part.codes[l] = static_cast<int8_t>(bit_pair(in + 16, p, l));
  }
}

// 32 bytes of third bits (clear: minus 4), 64 bytes of pairs of bits, sixteen 6-bit scales, f16.
// The scales' low nibbles are in 8 bytes, their high pairs in the next 4.
void decode_q3_k(const uint8_t* in, BlockPart* parts) {
  const uint8_t* packed = in + 96;
  const auto scale = [&](size_t j) {
    const int nibble = j < 8 ? low(packed[j]) : high(packed[j - 8]);
    return (nibble | (packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
  };
  for (size_t p = 0; p < 8; ++p) {
    BlockPart& part = parts[p];
    part = plain(load_half(in + 108));
    for (size_t h = 0; h < 2; ++h) part.scales[h] = scale(2 * p + h);
    for (size_t l = 0; l < kBlock; ++l) {
      const int third = in[l] >> p & 1;
      part.codes[l] = static_cast<int8_t>(bit_pair(in + 32, p, l) - (third ? 0 : 4));
    }
  }
}

// Of q4_k and q5_k: two f16; eight 6-bit scales and eight 6-bit minima in 12 bytes.
void decode_scales(const uint8_t* in, BlockPart* parts) {
  const uint8_t* packed = in + 4;
  for (size_t j = 0; j < 8; ++j) {
    int scale = packed[j] & 63, minimum = packed[(j + 4) % 12] & 63;
    if (j >= 4) {
      scale = low(packed[j + 4]) | packed[j - 4] >> 6 << 4;
      minimum = high(packed[j + 4]) | packed[j] >> 6 << 4;
    }
    parts[j].scale = load_half(in);
    parts[j].minimum = -load_half(in + 2);
    parts[j].scales[0] = parts[j].scales[1] = scale;
    parts[j].minima[0] = parts[j].minima[1] = minimum;
  }
}

// Of each 32 bytes the low nibbles are 32 elements, the high ones the next 32.
int nibble_of(const uint8_t* bytes, size_t part, size_t l) {
  const uint8_t byte = bytes[part / 2 * 32 + l];
  return part % 2 ? high(byte) : low(byte);
}

void decode_q4_k(const uint8_t* in, BlockPart* parts) {
  decode_scales(in, parts);
  for (size_t p = 0; p < 8; ++p) {
    for (size_t l = 0; l < kBlock; ++l)
      parts[p].codes[l] = static_cast<int8_t>(nibble_of(in + 16, p, l));
  }
}

// As q4_k, with 32 bytes of fifth bits before the nibbles: bit p of byte l.
void decode_q5_k(const uint8_t* in, BlockPart* parts) {
  decode_scales(in, parts);
  for (size_t p = 0; p < 8; ++p) {
    for (size_t l = 0; l < kBlock; ++l) {
      const int code = nibble_of(in + 48, p, l) | (in[16 + l] >> p & 1) << 4;
      parts[p].codes[l] = static_cast<int8_t>(code);
    }
  }
}

// 128 bytes of nibbles, 64 bytes of pairs of high bits, 16 int8 scales, f16. Of each half (64 and
// 32 bytes, 128 elements) byte l of the high bits belongs to elements l, l + 32, l + 64 and l + 96.
void decode_q6_k(const uint8_t* in, BlockPart* parts) {
  for (size_t p = 0; p < 8; ++p) {
    BlockPart& part = parts[p];
    part = plain(load_half(in + 208));
    for (size_t h = 0; h < 2; ++h) part.scales[h] = static_cast<int8_t>(in[192 + 2 * p + h]);
    const uint8_t* nibbles = in + p / 4 * 64 + p % 2 * 32;
    for (size_t l = 0; l < kBlock; ++l) {
      const int nibble = p % 4 < 2 ? low(nibbles[l]) : high(nibbles[l]);
      part.codes[l] = static_cast<int8_t>((nibble | bit_pair(in + 128, p, l) << 4) - 32);
    }
  }
}

void decode_iq4_nl(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(load_half(in));
  set_nibbles(in + 2, [](int nibble) { return kUnevenValues[nibble]; }, parts[0]);
}

// f16, a u16 of high pairs and 4 bytes of low nibbles of eight 6-bit scales, 128 bytes of nibbles.
void decode_iq4_xs(const uint8_t* in, BlockPart* parts) {
  const uint16_t pairs = load_u16(in + 2);
  for (size_t p = 0; p < 8; ++p) {
    parts[p] = plain(load_half(in));
    const int nibble = p % 2 ? high(in[4 + p / 2]) : low(in[4 + p / 2]);
    parts[p].scales[0] = parts[p].scales[1] = (nibble | (pairs >> (2 * p) & 3) << 4) - 32;
    set_nibbles(in + 8 + 16 * p, [](int code) { return kUnevenValues[code]; }, parts[p]);
  }
}

// A byte of exponent (E8M0), nibbles: sign, two bits of exponent, one of mantissa (E2M1). The
// values here are doubled, and so the scale halved. OCP Microscaling Formats 1.0.
void decode_mxfp4(const uint8_t* in, BlockPart* parts) {
  parts[0] = plain(in[0] == 255 ? std::numeric_limits<float>::quiet_NaN()
                                : std::ldexp(1.0f, static_cast<int>(in[0]) - 128));
  set_nibbles(in + 1, [](int nibble) { return kFloat4Values[nibble]; }, parts[0]);
}

struct Codec {
  void (*decode)(const uint8_t* in, BlockPart* parts);
  bool minimum;
  Piece pieces[5];  // until one of no bytes
};

// In the order of Type; floats have none.
constexpr Codec kCodecs[kTypes] = {
    {},
    {},
    {decode_q80, false, {{0, 2, 2}, {2, 32, 4}}},
    {decode_q40, false, {{0, 2, 2}, {2, 16, 4}}},
    {decode_q4_1, true, {{0, 2, 2}, {2, 2, 2}, {4, 16, 4}}},
    {decode_q5_0, false, {{0, 2, 2}, {2, 4, 4}, {6, 16, 4}}},
    {decode_q5_1, true, {{0, 2, 2}, {2, 2, 2}, {4, 4, 4}, {8, 16, 4}}},
    {decode_q2_k, true, {{80, 2, 2}, {82, 2, 2}, {0, 80, 4}}},
    {decode_q3_k, false, {{108, 2, 2}, {96, 12, 4}, {0, 96, 4}}},
    {decode_q4_k, true, {{0, 2, 2}, {2, 2, 2}, {4, 140, 4}}},
    {decode_q5_k, true, {{0, 2, 2}, {2, 2, 2}, {4, 172, 4}}},
    {decode_q6_k, false, {{208, 2, 2}, {192, 16, 4}, {0, 192, 4}}},
    {decode_iq4_nl, false, {{0, 2, 2}, {2, 16, 4}}},
    {decode_iq4_xs, false, {{0, 2, 2}, {2, 2, 2}, {4, 132, 4}}},
    {decode_mxfp4, false, {{0, 1, 1}, {1, 16, 4}}},
    {},
};

// Units of kUnit bytes of eight rows, one after another.
template <size_t kUnit>
uint8_t* pack_units(const uint8_t* const (&from)[kGroupRows], size_t offset, size_t bytes,
                    uint8_t* to) {
  for (size_t i = 0; i < bytes; i += kUnit) {
    for (size_t lane = 0; lane < kGroupRows; ++lane, to += kUnit)
      std::memcpy(to, from[lane] + offset + i, kUnit);
  }
  return to;
}

}  // namespace

bool has_minimum(Type type) { return kCodecs[index_of(type)].minimum; }

void decode_block(Type type, const uint8_t* block, BlockPart* parts) {
  kCodecs[index_of(type)].decode(block, parts);
}

std::span<const Piece> pieces_of(Type type) {
  const auto& pieces = kCodecs[index_of(type)].pieces;
  size_t count = 0;
  while (pieces[count].bytes > 0) ++count;
  return {pieces, count};
}

void pack_block(std::span<const Piece> pieces, const uint8_t* const (&from)[kGroupRows],
                size_t offset, uint8_t* to) {
  for (const Piece& piece : pieces) {
    const size_t at = offset + piece.offset;
    if (piece.unit == 4)
      to = pack_units<4>(from, at, piece.bytes, to);
    else if (piece.unit == 2)
      to = pack_units<2>(from, at, piece.bytes, to);
    else
      to = pack_units<1>(from, at, piece.bytes, to);
  }
}

void unpack_lane(std::span<const Piece> pieces, const uint8_t* from, size_t lane, uint8_t* to) {
  for (const Piece& piece : pieces) {
    for (size_t i = 0; i < piece.bytes; i += piece.unit) {
      std::memcpy(to + piece.offset + i, from + i * kGroupRows + lane * piece.unit, piece.unit);
    }
    from += piece.bytes * kGroupRows;
  }
}

}  // namespace hearth
