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

uint16_t load_u16(const uint8_t* in) {
  uint16_t value;
  std::memcpy(&value, in, 2);
  return value;
}

// The bits of the largest magnitude. Magnitudes have the order of their bits: NaN above infinity
// above what is finite.
int32_t largest_magnitude(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  return largest;
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

float largest_bf16(const uint8_t* in, size_t count) {
  return bf16_to_f32(largest_bits(in, count, 2));
}

// Blocks with an f16 scale at kOffset, and with a minimum behind it.
template <Type kType, size_t kOffset, bool kMinimum>
float largest_half(const uint8_t* in, size_t count) {
  constexpr size_t kBytes = info_of(kType).block_bytes;
  if (count == 0) return 0.0f;  // no bytes have no address to count from
  uint16_t largest = largest_bits(in + kOffset, count, kBytes);
  if (kMinimum) largest = std::max(largest, largest_bits(in + kOffset + 2, count, kBytes));
  return f16_to_f32(largest);
}

// Exponents, of which 255 is NaN.
float largest_mxfp4(const uint8_t* in, size_t count) {
  int largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max<int>(largest, in[i * 17]);
  if (largest == 255) return std::numeric_limits<float>::quiet_NaN();
  return count == 0 ? 0.0f : std::ldexp(1.0f, largest - 127);
}

template <Type kType>
void unpack(const uint8_t* in, size_t count, float* out) {
  dequantize_row(kType, in, count * info_of(kType).block, out);
}

template <Type kType>
constexpr FileFormat format_of(float (*largest_scale)(const uint8_t* in, size_t count)) {
  constexpr TypeInfo info = info_of(kType);
  return {info.name, info.block, info.block_bytes, unpack<kType>, largest_scale};
}

template <Type kType, size_t kOffset, bool kMinimum>
constexpr FileFormat format_with_half() {
  return format_of<kType>(largest_half<kType, kOffset, kMinimum>);
}

constexpr FileFormat kFormats[] = {
    format_of<Type::f32>(largest_f32),          format_of<Type::f16>(largest_f16),
    format_of<Type::bf16>(largest_bf16),        format_with_half<Type::q80, 0, false>(),
    format_with_half<Type::q40, 0, false>(),    format_with_half<Type::q4_1, 0, true>(),
    format_with_half<Type::q5_0, 0, false>(),   format_with_half<Type::q5_1, 0, true>(),
    format_with_half<Type::q2_k, 80, true>(),   format_with_half<Type::q3_k, 108, false>(),
    format_with_half<Type::q4_k, 0, true>(),    format_with_half<Type::q5_k, 0, true>(),
    format_with_half<Type::q6_k, 208, false>(), format_with_half<Type::iq4_nl, 0, false>(),
    format_with_half<Type::iq4_xs, 0, false>(), format_of<Type::mxfp4>(largest_mxfp4),
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
