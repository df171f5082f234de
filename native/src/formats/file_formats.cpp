#include "hearth/file_formats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "hearth/quant.h"

namespace hearth {
namespace {

constexpr size_t kSuper = 256;  // numbers in a block of the K formats

uint16_t load_u16(const uint8_t* in) {
  uint16_t value;
  std::memcpy(&value, in, 2);
  return value;
}

float load_half(const uint8_t* in) { return f16_to_f32(load_u16(in)); }

float bfloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// The bits of the largest magnitude. Magnitudes have the order of their bits: NaN above infinity
// above what is finite.
int32_t largest_magnitude(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  return largest;
}

void unpack_f32(const uint8_t* in, size_t count, float* out) {
  if (count > 0) std::memcpy(out, in, count * 4);
}

void unpack_f16(const uint8_t* in, size_t count, float* out) {
  dequantize_row(Type::f16, in, count, out);
}

void unpack_bf16(const uint8_t* in, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = bfloat(load_u16(in + 2 * i));
}

void unpack_q80(const uint8_t* in, size_t count, float* out) {
  dequantize_row(Type::q80, in, count * kBlock, out);
}

void unpack_q40(const uint8_t* in, size_t count, float* out) {
  dequantize_row(Type::q40, in, count * kBlock, out);
}

// f16 scale, f16 minimum, 16 bytes of nibbles (element j low, j + 16 high).
void unpack_q4_1(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 20, out += kBlock) {
    const float scale = load_half(in), minimum = load_half(in + 2);
    for (size_t j = 0; j < 16; ++j) {
      out[j] = scale * static_cast<float>(in[4 + j] & 15) + minimum;
      out[j + 16] = scale * static_cast<float>(in[4 + j] >> 4) + minimum;
    }
  }
}

// The fifth bit of element j is bit j of a u32 before the nibbles.
int five_bits(const uint8_t* high, const uint8_t* nibbles, size_t j) {
  const int low = j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4;
  return low | (high[j / 8] >> (j % 8) & 1) << 4;
}

void unpack_q5_0(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 22, out += kBlock) {
    const float scale = load_half(in);
    for (size_t j = 0; j < kBlock; ++j)
      out[j] = scale * static_cast<float>(five_bits(in + 2, in + 6, j) - 16);
  }
}

void unpack_q5_1(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 24, out += kBlock) {
    const float scale = load_half(in), minimum = load_half(in + 2);
    for (size_t j = 0; j < kBlock; ++j)
      out[j] = scale * static_cast<float>(five_bits(in + 4, in + 8, j)) + minimum;
  }
}

// 16 bytes of (scale, minimum) nibbles for 16 elements each, 64 bytes of pairs of bits, two f16.
// Byte l of a half's 32 has elements l, l + 32, l + 64 and l + 96 of its 128.
void unpack_q2_k(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 84, out += kSuper) {
    const float scale = load_half(in + 80), minimum = load_half(in + 82);
    for (size_t i = 0; i < kSuper; ++i) {
      const uint8_t byte = in[16 + i / 128 * 32 + i % 32];
      const uint8_t packed = in[i / 16];
      out[i] = scale * static_cast<float>(packed & 15) *
                   static_cast<float>(byte >> (i % 128 / 32 * 2) & 3) -
               minimum * static_cast<float>(packed >> 4);
    }
  }
}

// 32 bytes of third bits (clear: minus 4), 64 bytes of pairs of bits as in q2_k, sixteen 6-bit
// scales, f16. The scales' low nibbles are in 8 bytes, their high pairs in the next 4.
void unpack_q3_k(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 110, out += kSuper) {
    const uint8_t* packed = in + 96;
    const float scale = load_half(in + 108);
    float scales[16];
    for (size_t j = 0; j < 16; ++j) {
      const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
      const int high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
      scales[j] = scale * static_cast<float>((low | high << 4) - 32);
    }
    for (size_t i = 0; i < kSuper; ++i) {
      const int low = in[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
      const int third = in[i % 32] >> (i / 32) & 1;
      out[i] = scales[i / 16] * static_cast<float>(low - (third ? 0 : 4));
    }
  }
}

// Eight 6-bit scales and eight 6-bit minima in 12 bytes, for 32 elements each (q4_k, q5_k).
struct Eight {
  float scales[8], minima[8];
};

Eight unpack_eight(const uint8_t* in) {
  const float scale = load_half(in), minimum = load_half(in + 2);
  const uint8_t* packed = in + 4;
  Eight result;
  for (size_t j = 0; j < 8; ++j) {
    int sixth = packed[j] & 63, least = packed[(j + 4) % 12] & 63;
    if (j >= 4) {
      sixth = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
      least = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
    result.scales[j] = scale * static_cast<float>(sixth);
    result.minima[j] = minimum * static_cast<float>(least);
  }
  return result;
}

// Two f16, the eight scales and minima, 128 bytes: of each 32 the low nibbles are 32 elements, the
// high ones the next 32.
void unpack_q4_k(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 144, out += kSuper) {
    const Eight eight = unpack_eight(in);
    for (size_t group = 0; group < 8; ++group) {
      const uint8_t* bytes = in + 16 + group / 2 * 32;
      for (size_t j = 0; j < 32; ++j) {
        const int number = group % 2 ? bytes[j] >> 4 : bytes[j] & 15;
        out[group * 32 + j] =
            eight.scales[group] * static_cast<float>(number) - eight.minima[group];
      }
    }
  }
}

// As q4_k, with 32 bytes of fifth bits before the nibbles: bit `group` of byte j.
void unpack_q5_k(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 176, out += kSuper) {
    const Eight eight = unpack_eight(in);
    for (size_t group = 0; group < 8; ++group) {
      const uint8_t* bytes = in + 48 + group / 2 * 32;
      for (size_t j = 0; j < 32; ++j) {
        const int low = group % 2 ? bytes[j] >> 4 : bytes[j] & 15;
        const int number = low | (in[16 + j] >> group & 1) << 4;
        out[group * 32 + j] =
            eight.scales[group] * static_cast<float>(number) - eight.minima[group];
      }
    }
  }
}

// 128 bytes of nibbles, 64 bytes of pairs of high bits, 16 int8 scales, f16. Of each half (64 and
// 32 bytes, 128 elements) byte l of the high bits belongs to elements l, l + 32, l + 64 and l + 96.
void unpack_q6_k(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 210, out += kSuper) {
    const float scale = load_half(in + 208);
    for (size_t group = 0; group < 8; ++group) {
      const size_t half = group / 4, quarter = group % 4;
      const uint8_t* nibbles = in + half * 64 + quarter % 2 * 32;
      const uint8_t* high = in + 128 + half * 32;
      for (size_t l = 0; l < 32; ++l) {
        const int low = quarter < 2 ? nibbles[l] & 15 : nibbles[l] >> 4;
        const int number = (low | (high[l] >> (2 * quarter) & 3) << 4) - 32;
        const auto step = static_cast<int8_t>(in[192 + group * 2 + l / 16]);
        out[group * 32 + l] = scale * static_cast<float>(step) * static_cast<float>(number);
      }
    }
  }
}

// The sixteen values of IQ4_NL and IQ4_XS.
constexpr float kUneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

void unpack_uneven(const uint8_t* nibbles, float scale, float* out) {
  for (size_t j = 0; j < 16; ++j) {
    out[j] = scale * kUneven[nibbles[j] & 15];
    out[j + 16] = scale * kUneven[nibbles[j] >> 4];
  }
}

void unpack_iq4_nl(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 18, out += kBlock) unpack_uneven(in + 2, load_half(in), out);
}

// f16, a u16 of high pairs and 4 bytes of low nibbles of eight 6-bit scales, 128 bytes of nibbles.
void unpack_iq4_xs(const uint8_t* in, size_t count, float* out) {
  for (; count > 0; --count, in += 136, out += kSuper) {
    const float scale = load_half(in);
    const uint16_t high = load_u16(in + 2);
    for (size_t j = 0; j < 8; ++j) {
      const int sixth = (in[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (2 * j) & 3) << 4;
      unpack_uneven(in + 8 + 16 * j, scale * static_cast<float>(sixth - 32), out + 32 * j);
    }
  }
}

// A byte of exponent (E8M0), 16 bytes of nibbles: sign, two bits of exponent, one of mantissa
// (E2M1). The values here are doubled, and so the scale halved. OCP Microscaling Formats 1.0.
void unpack_mxfp4(const uint8_t* in, size_t count, float* out) {
  constexpr float kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.f, -1, -2, -3, -4, -6, -8, -12};
  for (; count > 0; --count, in += 17, out += kBlock) {
    const float scale = in[0] == 255 ? std::numeric_limits<float>::quiet_NaN()
                                     : std::ldexp(1.0f, static_cast<int>(in[0]) - 128);
    for (size_t j = 0; j < 16; ++j) {
      out[j] = scale * kValues[in[1 + j] & 15];
      out[j + 16] = scale * kValues[in[1 + j] >> 4];
    }
  }
}

float largest_f32(const uint8_t* in, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t value;
    std::memcpy(&value, in + 4 * i, 4);
    largest = std::max(largest, value & 0x7fffffff);
  }
  return std::bit_cast<float>(largest);
}

// The same of 16-bit floats.
uint16_t largest_bits(const uint8_t* in, size_t count, size_t stride) {
  uint16_t largest = 0;
  for (size_t i = 0; i < count; ++i)
    largest = std::max<uint16_t>(largest, load_u16(in + i * stride) & 0x7fff);
  return largest;
}

float largest_f16(const uint8_t* in, size_t count) {
  return f16_to_f32(largest_bits(in, count, 2));
}

float largest_bf16(const uint8_t* in, size_t count) { return bfloat(largest_bits(in, count, 2)); }

// The scale is the block's first half.
template <size_t kBytes>
float largest_first(const uint8_t* in, size_t count) {
  return f16_to_f32(largest_bits(in, count, kBytes));
}

constexpr FileFormat kFormats[] = {
    {"f32", 1, 4, unpack_f32, largest_f32},
    {"f16", 1, 2, unpack_f16, largest_f16},
    {"bf16", 1, 2, unpack_bf16, largest_bf16},
    {"q8_0", kBlock, kQ80BlockBytes, unpack_q80, largest_first<kQ80BlockBytes>},
    {"q4_0", kBlock, kQ40BlockBytes, unpack_q40, largest_first<kQ40BlockBytes>},
    {"q4_1", kBlock, 20, unpack_q4_1, nullptr},
    {"q5_0", kBlock, 22, unpack_q5_0, nullptr},
    {"q5_1", kBlock, 24, unpack_q5_1, nullptr},
    {"q2_k", kSuper, 84, unpack_q2_k, nullptr},
    {"q3_k", kSuper, 110, unpack_q3_k, nullptr},
    {"q4_k", kSuper, 144, unpack_q4_k, nullptr},
    {"q5_k", kSuper, 176, unpack_q5_k, nullptr},
    {"q6_k", kSuper, 210, unpack_q6_k, nullptr},
    {"iq4_nl", kBlock, 18, unpack_iq4_nl, nullptr},
    {"iq4_xs", kSuper, 136, unpack_iq4_xs, nullptr},
    {"mxfp4", kBlock, 17, unpack_mxfp4, nullptr},
};

}  // namespace

const FileFormat& file_format(std::string_view name) {
  std::string names;
  const std::string_view current = current_name(name);
  for (const FileFormat& each : kFormats) {
    if (each.name == current) return each;
    names.append(names.empty() ? "" : ", ").append(each.name);
  }
  throw std::invalid_argument("unknown format '" + std::string(name.substr(0, 32)) +
                              "': there are " + names);
}

float convert_rows(const FileFormat& from, Type to, const ColumnCut& cut,
                   std::span<const uint8_t> in, size_t rows, uint8_t* out) {
  const size_t stride = cut.columns / from.block * from.block_bytes;
  if (cut.columns > kMostColumns || cut.columns % from.block != 0 || cut.begin > cut.end ||
      cut.end > cut.columns || in.size() != rows * stride) {
    throw std::invalid_argument(
        "columns " + std::to_string(cut.begin) + " to " + std::to_string(cut.end) + " of " +
        std::to_string(rows) + " rows of " + std::to_string(cut.columns) + " in " +
        std::to_string(in.size()) + " bytes of " + std::string(from.name) + ", whose blocks of " +
        std::to_string(from.block) + " have " + std::to_string(from.block_bytes) + " bytes");
  }
  const size_t columns = cut.end - cut.begin, out_stride = row_bytes(to, columns);
  // Whole blocks around the cut.
  const size_t first = cut.begin / from.block, last = (cut.end + from.block - 1) / from.block;
  std::vector<float> numbers((last - first) * from.block);
  const float* wanted = numbers.data() + (cut.begin - first * from.block);
  int32_t largest = 0;
  for (size_t r = 0; r < rows; ++r) {
    from.unpack(in.data() + r * stride + first * from.block_bytes, last - first, numbers.data());
    largest = std::max(largest, largest_magnitude(wanted, columns));
    quantize_row(to, wanted, columns, out + r * out_stride);
  }
  return std::bit_cast<float>(largest);
}

}  // namespace hearth
