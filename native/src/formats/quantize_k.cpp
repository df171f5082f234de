// Quantizers of the K-quants and iq4_xs: a scale (and a minimum) for 16 or 32 elements each, which
// are themselves quantized, with one f16 for all. The layouts are in block_codecs.cpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "formats/block_values.h"
#include "formats/quantize.h"

namespace hearth::quantizers {
namespace {

constexpr size_t kColumns = kLargestBlock;
using Codes = std::array<uint8_t, kColumns>;

// Scales and minima of kParts parts as integers up to kMost, with the f16 that they are counted in.
template <size_t kParts>
struct Minima {
  std::array<uint8_t, kParts> scales, minima;
  float scale, minimum;
};

// codes: in [0, levels].
template <size_t kParts>
Minima<kParts> quantize_minima(const float* x, int most, int levels, Codes& codes) {
  constexpr size_t kPart = kColumns / kParts;
  std::array<ScaleAndMinimum, kParts> fits;
  float largest_scale = 0.0f, largest_minimum = 0.0f;
  for (size_t p = 0; p < kParts; ++p) {
    fits[p] = fit_minimum(x + p * kPart, kPart, levels);
    largest_scale = std::max(largest_scale, fits[p].scale);
    largest_minimum = std::max(largest_minimum, -fits[p].minimum);
  }
  Minima<kParts> result;
  result.scale = stored(largest_scale / static_cast<float>(most));
  result.minimum = stored(largest_minimum / static_cast<float>(most));
  const float per_scale = inverse_of(result.scale), per_minimum = inverse_of(result.minimum);
  for (size_t p = 0; p < kParts; ++p) {
    const int scale = nearest(fits[p].scale * per_scale, 0, most);
    const int minimum = nearest(-fits[p].minimum * per_minimum, 0, most);
    result.scales[p] = static_cast<uint8_t>(scale);
    result.minima[p] = static_cast<uint8_t>(minimum);
    const float inverse = inverse_of(result.scale * static_cast<float>(scale));
    const float least = result.minimum * static_cast<float>(minimum);
    for (size_t i = p * kPart; i < (p + 1) * kPart; ++i)
      codes[i] = static_cast<uint8_t>(nearest((x[i] + least) * inverse, 0, levels));
  }
  return result;
}

// Signed scales in [-limit, limit - 1]; codes are counted from -(levels + 1).
template <size_t kParts>
struct Scales {
  std::array<int, kParts> scales;
  float scale;
};

// fit(part) gives a part's scale; code(value) the code of x over that scale.
template <size_t kParts, typename Fit, typename Code>
Scales<kParts> quantize_scales(const float* x, int limit, Fit fit, Code code, Codes& codes) {
  constexpr size_t kPart = kColumns / kParts;
  std::array<float, kParts> fits;
  float extreme = 0.0f;
  for (size_t p = 0; p < kParts; ++p) {
    fits[p] = fit(x + p * kPart);
    if (std::abs(fits[p]) > std::abs(extreme)) extreme = fits[p];
  }
  Scales<kParts> result;
  result.scale = stored(extreme / static_cast<float>(-limit));
  const float per_scale = inverse_of(result.scale);
  for (size_t p = 0; p < kParts; ++p) {
    result.scales[p] = nearest(fits[p] * per_scale, -limit, limit - 1);
    const float inverse = inverse_of(result.scale * static_cast<float>(result.scales[p]));
    for (size_t i = p * kPart; i < (p + 1) * kPart; ++i) codes[i] = code(x[i] * inverse);
  }
  return result;
}

// 32 bytes a half of the block, of four codes' pairs of bits each.
void store_pairs(const Codes& codes, int shift, uint8_t* out) {
  for (size_t i = 0; i < kColumns; ++i) {
    uint8_t& byte = out[i / 128 * 32 + i % 32];
    byte = static_cast<uint8_t>(byte | (codes[i] >> shift & 3) << (i % 128 / 32 * 2));
  }
}

// 128 bytes: of each 32 the low nibbles are 32 elements, the high ones the next 32.
void store_nibbles(const Codes& codes, uint8_t* out) {
  for (size_t i = 0; i < kColumns; ++i) {
    uint8_t& byte = out[i / 64 * 32 + i % 32];
    byte = static_cast<uint8_t>(byte | (codes[i] & 15) << (i % 64 / 32 * 4));
  }
}

// One bit of each code: bit p of byte l is element 32 p + l.
void store_bits(const Codes& codes, int shift, uint8_t* out) {
  for (size_t i = 0; i < kColumns; ++i)
    out[i % 32] = static_cast<uint8_t>(out[i % 32] | (codes[i] >> shift & 1) << (i / 32));
}

void store_six_bits(const Minima<8>& fitted, uint8_t* out) {
  store_f16(out, fitted.scale);
  store_f16(out + 2, fitted.minimum);
  uint8_t* packed = out + 4;
  for (size_t j = 0; j < 4; ++j) {
    const int scale = fitted.scales[j + 4], minimum = fitted.minima[j + 4];
    packed[j] = static_cast<uint8_t>(fitted.scales[j] | scale >> 4 << 6);
    packed[j + 4] = static_cast<uint8_t>(fitted.minima[j] | minimum >> 4 << 6);
    packed[j + 8] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
  }
}

}  // namespace

void q2_k(const float* x, uint8_t* out) {
  Codes codes;
  const Minima<16> fitted = quantize_minima<16>(x, 15, 3, codes);
  std::memset(out, 0, 84);
  for (size_t p = 0; p < 16; ++p)
    out[p] = static_cast<uint8_t>(fitted.scales[p] | fitted.minima[p] << 4);
  store_pairs(codes, 0, out + 16);
  store_f16(out + 80, fitted.scale);
  store_f16(out + 82, fitted.minimum);
}

void q3_k(const float* x, uint8_t* out) {
  Codes codes;
  const auto fitted = quantize_scales<16>(
      x, 32, [](const float* part) { return fit_scale(part, 16, 3); },
      [](float value) { return static_cast<uint8_t>(nearest(value, -4, 3) + 4); }, codes);
  std::memset(out, 0, 110);
  store_bits(codes, 2, out);
  store_pairs(codes, 0, out + 32);
  uint8_t* packed = out + 96;
  for (size_t j = 0; j < 16; ++j) {
    const int scale = fitted.scales[j] + 32;
    packed[j % 8] = static_cast<uint8_t>(packed[j % 8] | (scale & 15) << (j / 8 * 4));
    packed[8 + j % 4] = static_cast<uint8_t>(packed[8 + j % 4] | scale >> 4 << (j / 4 * 2));
  }
  store_f16(out + 108, fitted.scale);
}

void q4_k(const float* x, uint8_t* out) {
  Codes codes;
  const Minima<8> fitted = quantize_minima<8>(x, 63, 15, codes);
  std::memset(out, 0, 144);
  store_six_bits(fitted, out);
  store_nibbles(codes, out + 16);
}

void q5_k(const float* x, uint8_t* out) {
  Codes codes;
  const Minima<8> fitted = quantize_minima<8>(x, 63, 31, codes);
  std::memset(out, 0, 176);
  store_six_bits(fitted, out);
  store_bits(codes, 4, out + 16);
  store_nibbles(codes, out + 48);
}

void q6_k(const float* x, uint8_t* out) {
  Codes codes;
  const auto fitted = quantize_scales<16>(
      x, 128, [](const float* part) { return fit_scale(part, 16, 31); },
      [](float value) { return static_cast<uint8_t>(nearest(value, -32, 31) + 32); }, codes);
  std::memset(out, 0, 210);
  for (size_t i = 0; i < kColumns; ++i) {
    // Elements l and l + 64 of a half share a byte of nibbles.
    uint8_t& byte = out[i / 128 * 64 + i % 64];
    byte = static_cast<uint8_t>(byte | (codes[i] & 15) << (i % 128 / 64 * 4));
  }
  store_pairs(codes, 4, out + 128);
  for (size_t p = 0; p < 16; ++p)
    out[192 + p] = static_cast<uint8_t>(static_cast<int8_t>(fitted.scales[p]));
  store_f16(out + 208, fitted.scale);
}

void iq4_xs(const float* x, uint8_t* out) {
  Codes codes;
  const auto fitted = quantize_scales<8>(
      x, 32, [](const float* part) { return fit_values(part, 32, kUnevenValues); },
      [](float value) { return nearest_value(value, kUnevenValues); }, codes);
  std::memset(out, 0, 136);
  store_f16(out, fitted.scale);
  uint32_t pairs = 0;
  for (size_t p = 0; p < 8; ++p) {
    const auto scale = static_cast<uint32_t>(fitted.scales[p] + 32);
    pairs |= scale >> 4 << (2 * p);
    out[4 + p / 2] = static_cast<uint8_t>(out[4 + p / 2] | (scale & 15) << (p % 2 * 4));
    for (size_t j = 0; j < 16; ++j) {
      const size_t at = 32 * p + j;
      out[8 + 16 * p + j] = static_cast<uint8_t>(codes[at] | codes[at + 16] << 4);
    }
  }
  out[2] = static_cast<uint8_t>(pairs);
  out[3] = static_cast<uint8_t>(pairs >> 8);
}

}  // namespace hearth::quantizers
