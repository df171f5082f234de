// Blocks of quantized weights within a packed group: formats/block_codecs.cpp defines them, and
// formats/matrix.h the interleaving. A block's words are those of its pieces, eight rows after one
// another.

// Of 32 columns: columns 4k to 4k + 3 and those 16 further, as bytes; the value of a code is
//   scale * scales * (code - offset) + minimum * minima
struct Part {
  uvec2 codes;
  int offset;
  ivec2 scales;
  ivec2 minima;
  float scale, minimum;
};

int byte_of(uint word, uint i) { return bitfieldExtract(int(word), int(8 * i), 8); }

// Bytes of weights and of activations, both signed. (Codes with an offset are below 128.)
#ifdef INTEGER_DOT
// OpSDot of four bytes in a word (GLSL's own name for it is younger than many compilers).
#extension GL_EXT_spirv_intrinsics : require
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int signed_dot(int a, int b, spirv_literal int four_bytes);

int dot4(uint a, uint b) { return signed_dot(int(a), int(b), 0); }

int sum4(uint a) { return dot4(a, 0x01010101u); }
#else
int dot4(uint a, uint b) {
  return byte_of(a, 0) * byte_of(b, 0) + byte_of(a, 1) * byte_of(b, 1) +
         byte_of(a, 2) * byte_of(b, 2) + byte_of(a, 3) * byte_of(b, 3);
}

int sum4(uint a) { return byte_of(a, 0) + byte_of(a, 1) + byte_of(a, 2) + byte_of(a, 3); }
#endif

// Row `row`'s u32 number `word` of the piece that starts `bytes` bytes of a row into the block.
uint word_at(Words weights, uint block, uint bytes, uint word, uint row) {
  return weights.at[block + bytes * 2 + word * 8 + row];
}

// The same of a byte.
uint byte_at(Words weights, uint block, uint bytes, uint number, uint row) {
  return word_at(weights, block, bytes, number / 4, row) >> (number % 4 * 8) & 255u;
}

float half_at(Words weights, uint block, uint bytes, uint row) {
  const vec2 halves = unpackHalf2x16(weights.at[block + bytes * 2 + row / 2]);
  return row % 2 == 0 ? halves.x : halves.y;
}

const uint kNibbles = 0x0f0f0f0fu;

// Bit i of the four lowest to bit `to` of byte i.
uint spread_bits(uint bits, uint to) {
  return ((bits & 1u) | (bits & 2u) << 7 | (bits & 4u) << 14 | (bits & 8u) << 21) << to;
}

Part plain(float scale, uvec2 codes, int offset) {
  return Part(codes, offset, ivec2(1), ivec2(0), scale, 0.0);
}

uvec2 nibbles_of(uint word) { return uvec2(word & kNibbles, word >> 4 & kNibbles); }

#if TYPE == 12 || TYPE == 13
const int kValues[16] = int[](-127, -104, -83, -65, -49, -35, -22, -10,
                              1, 13, 25, 38, 53, 69, 89, 113);
#elif TYPE == 14
const int kValues[16] = int[](0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
#endif
#if TYPE == 12 || TYPE == 13 || TYPE == 14
uint values_of(uint nibbles) {
  uint values = 0;
  for (uint i = 0; i < 4; ++i)
    values |= (uint(kValues[nibbles >> (8 * i) & 15u]) & 255u) << (8 * i);
  return values;
}
#endif

#if TYPE == 2  // q8_0
const uint kParts = 1, kBlockWords = 34 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  return plain(half_at(w, block, 0, row),
               uvec2(word_at(w, block, 2, k, row), word_at(w, block, 2, 4 + k, row)), 0);
}
#elif TYPE == 3  // q4_0
const uint kParts = 1, kBlockWords = 18 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  return plain(half_at(w, block, 0, row), nibbles_of(word_at(w, block, 2, k, row)), 8);
}
#elif TYPE == 4  // q4_1
#define MINIMUM
const uint kParts = 1, kBlockWords = 20 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  Part part = plain(half_at(w, block, 0, row), nibbles_of(word_at(w, block, 4, k, row)), 0);
  part.minima = ivec2(1);
  part.minimum = half_at(w, block, 2, row);
  return part;
}
#elif TYPE == 5 || TYPE == 6  // q5_0, q5_1
#if TYPE == 5
const uint kParts = 1, kBlockWords = 22 * 2, kFifth = 2;
#else
#define MINIMUM
const uint kParts = 1, kBlockWords = 24 * 2, kFifth = 4;
#endif
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  uvec2 codes = nibbles_of(word_at(w, block, kFifth + 4, k, row));
  const uint fifth = word_at(w, block, kFifth, 0, row);
  codes |= uvec2(spread_bits(fifth >> (4 * k), 4), spread_bits(fifth >> (16 + 4 * k), 4));
  Part part = plain(half_at(w, block, 0, row), codes, TYPE == 5 ? 16 : 0);
#if TYPE == 6
  part.minima = ivec2(1);
  part.minimum = half_at(w, block, 2, row);
#endif
  return part;
}
#elif TYPE == 7  // q2_k
#define MINIMUM
const uint kParts = 8, kBlockWords = 84 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uint from = 4 + p / 4 * 8 + k, shift = p % 4 * 2;
  const uvec2 codes = uvec2(word_at(w, block, 4, from, row), word_at(w, block, 4, from + 4, row));
  Part part = plain(half_at(w, block, 0, row), codes >> shift & 0x03030303u, 0);
  for (uint h = 0; h < 2; ++h) {
    const uint both = byte_at(w, block, 4, 2 * p + h, row);
    part.scales[h] = int(both & 15u);
    part.minima[h] = int(both >> 4);
  }
  part.minimum = -half_at(w, block, 2, row);
  return part;
}
#elif TYPE == 8  // q3_k
const uint kParts = 8, kBlockWords = 110 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uint from = 8 + p / 4 * 8 + k, shift = p % 4 * 2;
  uvec2 codes = uvec2(word_at(w, block, 14, from, row), word_at(w, block, 14, from + 4, row));
  const uvec2 third = uvec2(word_at(w, block, 14, k, row), word_at(w, block, 14, 4 + k, row));
  codes = (codes >> shift & 0x03030303u) | (third >> p & 0x01010101u) << 2;
  Part part = plain(half_at(w, block, 0, row), codes, 4);
  for (uint h = 0; h < 2; ++h) {
    const uint j = 2 * p + h, both = byte_at(w, block, 2, j % 8, row);
    const uint high = byte_at(w, block, 2, 8 + j % 4, row) >> (j / 4 * 2) & 3u;
    part.scales[h] = int((j < 8 ? both & 15u : both >> 4) | high << 4) - 32;
  }
  return part;
}
#elif TYPE == 9 || TYPE == 10  // q4_k, q5_k
#define MINIMUM
#if TYPE == 9
const uint kParts = 8, kBlockWords = 144 * 2, kNibbleWord = 3;
#else
const uint kParts = 8, kBlockWords = 176 * 2, kNibbleWord = 11;
#endif
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uint from = kNibbleWord + p / 2 * 8 + k, shift = p % 2 * 4;
  uvec2 codes = uvec2(word_at(w, block, 4, from, row), word_at(w, block, 4, from + 4, row));
  codes = codes >> shift & kNibbles;
#if TYPE == 10
  const uvec2 fifth = uvec2(word_at(w, block, 4, 3 + k, row), word_at(w, block, 4, 7 + k, row));
  codes |= (fifth >> p & 0x01010101u) << 4;
#endif
  Part part = plain(half_at(w, block, 0, row), codes, 0);
  uint scale = byte_at(w, block, 4, p, row) & 63u, least = byte_at(w, block, 4, (p + 4) % 12, row) & 63u;
  if (p >= 4) {
    const uint both = byte_at(w, block, 4, p + 4, row);
    scale = (both & 15u) | byte_at(w, block, 4, p - 4, row) >> 6 << 4;
    least = both >> 4 | byte_at(w, block, 4, p, row) >> 6 << 4;
  }
  part.scales = ivec2(scale);
  part.minima = ivec2(least);
  part.minimum = -half_at(w, block, 2, row);
  return part;
}
#elif TYPE == 11  // q6_k
const uint kParts = 8, kBlockWords = 210 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uint from = p / 4 * 16 + p % 2 * 8 + k, high = 32 + p / 4 * 8 + k;
  uvec2 codes = uvec2(word_at(w, block, 18, from, row), word_at(w, block, 18, from + 4, row));
  codes = codes >> (p % 4 < 2 ? 0 : 4) & kNibbles;
  const uvec2 pairs = uvec2(word_at(w, block, 18, high, row), word_at(w, block, 18, high + 4, row));
  codes |= (pairs >> (p % 4 * 2) & 0x03030303u) << 4;
  Part part = plain(half_at(w, block, 0, row), codes, 32);
  const uint both = word_at(w, block, 2, p / 2, row) >> (p % 2 * 16);
  part.scales = ivec2(byte_of(both, 0), byte_of(both, 1));
  return part;
}
#elif TYPE == 12  // iq4_nl
const uint kParts = 1, kBlockWords = 18 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uvec2 nibbles = nibbles_of(word_at(w, block, 2, k, row));
  return plain(half_at(w, block, 0, row), uvec2(values_of(nibbles.x), values_of(nibbles.y)), 0);
}
#elif TYPE == 13  // iq4_xs
const uint kParts = 8, kBlockWords = 136 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uvec2 nibbles = nibbles_of(word_at(w, block, 4, 1 + 4 * p + k, row));
  Part part = plain(half_at(w, block, 0, row),
                    uvec2(values_of(nibbles.x), values_of(nibbles.y)), 0);
  const uint pairs = w.at[block + 4 + row / 2] >> (row % 2 * 16) & 0xffffu;
  const uint low = byte_at(w, block, 4, p / 2, row) >> (p % 2 * 4) & 15u;
  part.scales = ivec2(int(low | (pairs >> (2 * p) & 3u) << 4) - 32);
  return part;
}
#elif TYPE == 14  // mxfp4
const uint kParts = 1, kBlockWords = 17 * 2;
Part load_part(Words w, uint block, uint p, uint row, uint k) {
  const uvec2 nibbles = nibbles_of(word_at(w, block, 1, k, row));
  const uint exponent = w.at[block + row / 4] >> (row % 4 * 8) & 255u;
  const float scale = exponent == 255 ? uintBitsToFloat(0x7fc00000u) : ldexp(1.0, int(exponent) - 128);
  return plain(scale, uvec2(values_of(nibbles.x), values_of(nibbles.y)), 0);
}
#endif
