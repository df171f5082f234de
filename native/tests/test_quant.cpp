// Number formats: all values of f16; error bounds and bytes computed by hand for the block formats.
// Also packing by a round trip, and random weights by their cuts.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "formats/matrix.h"
#include "hearth/file_formats.h"
#include "hearth/quant.h"

using namespace hearth;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kQ40BlockBytes = 18, kQ80BlockBytes = 34;

std::vector<float> random_floats(size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& each : x) each = normal(random);
  return x;
}

std::vector<uint8_t> quantized(Type type, const std::vector<float>& x) {
  std::vector<uint8_t> bytes(row_bytes(type, x.size()));
  quantize_row(type, x.data(), x.size(), bytes.data());
  return bytes;
}

std::vector<float> dequantized(Type type, const std::vector<uint8_t>& bytes, size_t columns) {
  std::vector<float> x(columns);
  dequantize_row(type, bytes.data(), columns, x.data());
  return x;
}

// IEEE 754's own words for binary16.
double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

void test_f16_every_value() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const test::Case each("half ", bits);
    const float value = f16_to_f32(half);
    if ((half & 0x7fff) > 0x7c00) {
      CHECK(std::isnan(value));
      CHECK((f32_to_f16(value) & 0x7fff) > 0x7c00);
      continue;
    }
    if ((half & 0x7fff) == 0x7c00) {
      CHECK_EQUAL(value, half & 0x8000 ? -kInfinity : kInfinity);
    } else {
      CHECK_EQUAL(static_cast<double>(value), half_value(half));
      CHECK_EQUAL(std::signbit(value), (half & 0x8000) != 0);
    }
    CHECK_EQUAL(f32_to_f16(value), half);
  }
}

// Between any two neighbours: the middle goes to the even one, what is beside it to the nearer.
void test_f16_rounding() {
  for (uint16_t half = 0; half < 0x7c00; ++half) {
    const test::Case each("half ", half);
    const auto next = static_cast<uint16_t>(half + 1);
    // Past the largest half, the next power of two is the neighbour that infinity stands for.
    const double above = next == 0x7c00 ? 65536.0 : half_value(next);
    const auto middle = static_cast<float>((half_value(half) + above) / 2);
    const uint16_t even = half % 2 == 0 ? half : next;
    CHECK_EQUAL(f32_to_f16(middle), even);
    CHECK_EQUAL(f32_to_f16(-middle), static_cast<uint16_t>(even | 0x8000));
    CHECK_EQUAL(f32_to_f16(std::nextafter(middle, 0.0f)), half);
    CHECK_EQUAL(f32_to_f16(std::nextafter(middle, kInfinity)), next);
  }
  CHECK_EQUAL(f32_to_f16(std::numeric_limits<float>::max()), uint16_t{0x7c00});
  CHECK_EQUAL(f32_to_f16(-kInfinity), uint16_t{0xfc00});
  CHECK_EQUAL(f32_to_f16(std::numeric_limits<float>::denorm_min()), uint16_t{0});
  CHECK_EQUAL(f32_to_f16(-0.0f), uint16_t{0x8000});
}

void test_names_and_sizes() {
  for (size_t i = 0; i < kTypes; ++i) {
    CHECK_EQUAL(index_of(kTypeInfos[i].type), i);
    CHECK(parse_type(kTypeInfos[i].name) == kTypeInfos[i].type);
  }
  CHECK(parse_type("q80") == Type::q80);
  CHECK(parse_type("q40") == Type::q40);
  CHECK_THROWS(parse_type("q50"), std::invalid_argument, "'q50'");
  CHECK_EQUAL(row_bytes(Type::f32, 3), size_t{12});
  CHECK_EQUAL(row_bytes(Type::f16, 3), size_t{6});
  CHECK_EQUAL(row_bytes(Type::q80, 64), size_t{68});
  CHECK_EQUAL(row_bytes(Type::q40, 64), size_t{36});
  CHECK_EQUAL(row_bytes(Type::q6_k, 512), size_t{420});
  CHECK_THROWS(row_bytes(Type::q4_k, 32), std::invalid_argument, "blocks have 256");
  CHECK_THROWS(row_bytes(Type::q40, 33), std::invalid_argument, "33");
  CHECK_THROWS(row_bytes(Type::f32, size_t{1} << 62), std::invalid_argument, "4611686018427387904");
  CHECK_THROWS(row_bytes(Type::q80, ~size_t{31}), std::invalid_argument, "more than");
}

// GGUF's bytes, worked out by hand.
void test_blocks_by_hand() {
  std::vector<float> x(32);
  for (size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i % 16) - 8.0f;
  std::vector<uint8_t> bytes = quantized(Type::q40, x);  // scale -8 / -8 = 1
  CHECK_EQUAL(bytes[0], uint8_t{0x00});
  CHECK_EQUAL(bytes[1], uint8_t{0x3c});
  for (size_t i = 0; i < 16; ++i) CHECK_EQUAL(bytes[2 + i], static_cast<uint8_t>(i | i << 4));
  CHECK_SAME(dequantized(Type::q40, bytes, 32), x);

  for (size_t i = 0; i < 32; ++i) x[i] = (static_cast<float>(i) - 15.0f) * 2.0f;
  x[0] = -254.0f;
  bytes = quantized(Type::q80, x);  // scale 254 / 127 = 2
  CHECK_EQUAL(bytes[0], uint8_t{0x00});
  CHECK_EQUAL(bytes[1], uint8_t{0x40});
  CHECK_EQUAL(static_cast<int8_t>(bytes[2]), int8_t{-127});
  for (int i = 1; i < 32; ++i)
    CHECK_EQUAL(static_cast<int>(static_cast<int8_t>(bytes[2 + i])), i - 15);
  CHECK_SAME(dequantized(Type::q80, bytes, 32), x);
}

// Half a step of the scale, or a whole one where q40 must clip (the side that its extreme is not
// on has 7 steps, not 8); and the scale itself is rounded to f16, to one part in 2^11.
void test_error_bounds() {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> x =
        random_floats(32, std::ldexp(1.0f, static_cast<int>(seed % 20) - 12), seed);
    float largest = 0.0f;
    for (float each : x) largest = std::max(largest, std::abs(each));
    const std::vector<float> eight = dequantized(Type::q80, quantized(Type::q80, x), 32);
    const std::vector<float> four = dequantized(Type::q40, quantized(Type::q40, x), 32);
    // The step of subnormal halves, for the scales that become one.
    const double rounding = std::max<double>(largest * 0x1p-11, 127 * 0x1p-25) + largest * 1e-6;
    for (size_t i = 0; i < 32; ++i) {
      CHECK_NEAR(eight[i], x[i], largest / 127.0 / 2.0 + rounding);
      CHECK_NEAR(four[i], x[i], largest / 8.0 + rounding);
    }
  }
}

// Quantizing what was quantized changes nothing: a model converted twice is the same model.
void test_q80_twice() {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const std::vector<uint8_t> once = quantized(Type::q80, random_floats(64, 0.02f, seed));
    const std::vector<uint8_t> twice = quantized(Type::q80, dequantized(Type::q80, once, 64));
    CHECK(once == twice);
  }
}

// Nothing here may be undefined (the sanitizers look on), and no number may spoil its neighbours.
void test_strange_numbers() {
  const float tiny = std::numeric_limits<float>::denorm_min();
  for (const TypeInfo& info : kTypeInfos) {
    if (!is_quantized(info.type)) continue;
    const Type type = info.type;
    const size_t columns = info.block;
    const test::Case each(info.name);
    for (float strange : {kNan, -kNan, kInfinity, -kInfinity}) {
      std::vector<float> x = random_floats(columns, 1.0f, 7);
      std::vector<float> without = x;
      x[5] = strange;
      without[5] = 0.0f;
      CHECK(quantized(type, x) == quantized(type, without));
    }
    for (float value : {0.0f, -0.0f, tiny, -tiny, 1e-40f, -3e-39f, 1e-37f}) {
      const std::vector<float> x(columns, value);
      for (float back : dequantized(type, quantized(type, x), columns))
        CHECK_NEAR(back, 0.0, 1e-37);
    }
    // One number of a normal size, the others denormal.
    std::vector<float> x(columns, tiny);
    x[31] = 1.0f;
    const std::vector<float> back = dequantized(type, quantized(type, x), columns);
    CHECK_NEAR(back[0], 0.0, 1e-2);  // iq4_nl has no 0
    CHECK_NEAR(back[31], 1.0, 2e-3);
  }
}

// Packing loses nothing: every row comes back as the bytes that went in say.
void test_packing() {
  for (const TypeInfo& info : kTypeInfos) {
    const Type type = info.type;
    for (size_t rows : {1, 2, 7, 8, 9, 16, 23}) {
      for (size_t columns : {1, 3, 32, 64, 160, 512}) {
        if (columns % info.block != 0) continue;
        const test::Case each(type_name(type), " ", rows, " x ", columns);
        const size_t stride = row_bytes(type, columns);
        std::vector<uint8_t> data;
        for (size_t r = 0; r < rows; ++r) {
          const auto bytes =
              quantized(type, random_floats(columns, 1.0f, static_cast<uint32_t>(r)));
          data.insert(data.end(), bytes.begin(), bytes.end());
        }
        const Matrix matrix(type, rows, columns, data);
        CHECK_EQUAL(matrix.groups(), (rows + 7) / 8);
        CHECK_EQUAL(matrix.size_bytes(), matrix.groups() * 8 * stride);
        std::vector<float> row(columns), expected(columns);
        for (size_t r = 0; r < rows; ++r) {
          matrix.read_row(r, row.data());
          dequantize_row(type, data.data() + r * stride, columns, expected.data());
          CHECK_SAME(row, expected);
        }
        data.pop_back();
        CHECK_THROWS(Matrix(type, rows, columns, data), std::invalid_argument,
                     std::to_string(data.size()));
      }
    }
  }
  CHECK(Matrix().empty());
  CHECK(Matrix(Type::q40, 3, 0, {}).empty());
}

void test_random_cuts() {
  constexpr size_t kRows = 11, kColumns = 1024;
  for (const TypeInfo& info : kTypeInfos) {
    const Type type = info.type;
    const size_t stride = row_bytes(type, kColumns);
    std::vector<uint8_t> whole(kRows * stride);
    random_rows(type,
                {.seed = 5,
                 .row_begin = 0,
                 .rows = kRows,
                 .column_begin = 0,
                 .columns = kColumns,
                 .scale = 0.02f},
                whole.data());
    const size_t unit = info.block;
    std::mt19937 random(1);
    for (int i = 0; i < 100; ++i) {
      const size_t row = random() % kRows, rows = 1 + random() % (kRows - row);
      const size_t units = kColumns / unit;
      const size_t first = random() % units, count = 1 + random() % (units - first);
      const test::Case each(type_name(type), " rows ", row, "+", rows, " columns ", first * unit,
                            "+", count * unit);
      const size_t cut_stride = row_bytes(type, count * unit);
      std::vector<uint8_t> cut(rows * cut_stride);
      random_rows(type,
                  {.seed = 5,
                   .row_begin = row,
                   .rows = rows,
                   .column_begin = first * unit,
                   .columns = count * unit,
                   .scale = 0.02f},
                  cut.data());
      for (size_t r = 0; r < rows; ++r) {
        CHECK(std::memcmp(cut.data() + r * cut_stride,
                          whole.data() + (row + r) * stride + row_bytes(type, first * unit),
                          cut_stride) == 0);
      }
    }
    std::vector<uint8_t> other(whole.size());
    random_rows(type,
                {.seed = 6,
                 .row_begin = 0,
                 .rows = kRows,
                 .column_begin = 0,
                 .columns = kColumns,
                 .scale = 0.02f},
                other.data());
    CHECK(other != whole);
  }
  uint8_t none[1];
  CHECK_THROWS(
      random_rows(
          Type::q40,
          {.seed = 0, .row_begin = 0, .rows = 1, .column_begin = 16, .columns = 32, .scale = 1.0f},
          none),
      std::invalid_argument, "column 16");
}

// 65,536 numbers: the standard deviation of their standard deviation is about 0.2% of it; five of
// those, and 1% for the asymmetry of int8 and nibbles and the f16 scale.
void test_random_spread() {
  for (const TypeInfo& info : kTypeInfos) {
    const Type type = info.type;
    const test::Case each(info.name);
    constexpr size_t kRows = 64, kColumns = 1024;
    std::vector<uint8_t> bytes(kRows * row_bytes(type, kColumns));
    random_rows(type,
                {.seed = 3,
                 .row_begin = 0,
                 .rows = kRows,
                 .column_begin = 0,
                 .columns = kColumns,
                 .scale = 0.05f},
                bytes.data());
    std::vector<float> row(kColumns);
    double squares = 0.0;
    for (size_t r = 0; r < kRows; ++r) {
      dequantize_row(type, bytes.data() + r * row_bytes(type, kColumns), kColumns, row.data());
      for (float x : row) squares += static_cast<double>(x) * x;
    }
    CHECK_NEAR(std::sqrt(squares / (kRows * kColumns)), 0.05, 0.05 * 0.02);
  }
}

// Formats of files: the layouts by hand. (tests/unit/test_converter_gguf.py holds all of them to
// the reference implementation.)
void test_file_formats_by_hand() {
  std::vector<uint8_t> q4_k(144);
  q4_k[1] = 0x40;  // f16 2: the scale
  q4_k[3] = 0x3c;  // f16 1: the minimum
  uint8_t* packed = q4_k.data() + 4;
  packed[0] = 3 | 1 << 6;  // scale 0, high bits of scale 4
  packed[1] = 4;
  packed[4] = 5 | 2 << 6;  // minimum 0, high bits of minimum 4
  packed[5] = 6;
  packed[8] = 1 | 2 << 4;  // low bits of scale and minimum 4
  q4_k[16] = 7 | 2 << 4;
  q4_k[16 + 64] = 3;
  std::vector<float> out(256);
  const FileFormat& k = file_format("q4_k");
  CHECK_EQUAL(k.block_bytes, q4_k.size());
  k.unpack(q4_k.data(), 1, out.data());
  CHECK_EQUAL(out[0], 2.0f * 3 * 7 - 5);
  CHECK_EQUAL(out[1], -5.0f);
  CHECK_EQUAL(out[32], 2.0f * 4 * 2 - 6);
  CHECK_EQUAL(out[128], 2.0f * 17 * 3 - 34);

  std::vector<uint8_t> q6_k(210);
  q6_k[0] = 15 | 1 << 4;  // elements 0 and 64
  q6_k[128] = 3 | 2 << 4;
  for (size_t i = 192; i < 208; ++i) q6_k[i] = 1;
  q6_k[196] = 0xfe;  // -2: elements 64 to 79
  q6_k[209] = 0x38;  // f16 0.5
  std::vector<uint8_t> q80(256 / kBlock * kQ80BlockBytes);
  const float largest =
      convert_rows(file_format("q6_k"), Type::q80, {256, 0, 256}, q6_k, 1, q80.data());
  dequantize_row(Type::q80, q80.data(), 256, out.data());
  CHECK_EQUAL(largest, 32.0f);  // elements 65 to 79: no bits, and twice the step
  CHECK_NEAR(out[0], 0.5 * 31, 0.07);
  CHECK_NEAR(out[1], 0.5 * -32, 0.07);
  CHECK_NEAR(out[64], 0.5 * -2 * (33 - 32), 0.14);

  q6_k[209] = 0x7c;
  std::vector<uint8_t> cut(4 * 64);
  CHECK_EQUAL(convert_rows(file_format("q6_k"), Type::f32, {256, 64, 128}, q6_k, 1, cut.data()),
              kInfinity);
  q6_k[208] = 1;
  CHECK(std::isnan(
      convert_rows(file_format("q6_k"), Type::f32, {256, 64, 128}, q6_k, 1, cut.data())));
  CHECK_THROWS(convert_rows(file_format("q6_k"), Type::f32, {256, 64, 257}, q6_k, 1, cut.data()),
               std::invalid_argument, "64 to 257");
  CHECK_THROWS(convert_rows(file_format("q6_k"), Type::f32, {256, 0, 0}, q6_k, 2, cut.data()),
               std::invalid_argument, "210 bytes");
  CHECK_THROWS(file_format("q9_k"), std::invalid_argument, "unknown format 'q9_k'");
}

void test_largest_scales() {
  const std::vector<float> x = {1.0f, -3.0f, kNan, 2.0f};
  const std::vector<uint8_t> f32 = quantized(Type::f32, x), f16 = quantized(Type::f16, x);
  CHECK(std::isnan(file_format("f32").largest_scale(f32.data(), 4)));
  CHECK(std::isnan(file_format("f16").largest_scale(f16.data(), 4)));
  CHECK_EQUAL(file_format("f32").largest_scale(f32.data(), 2), 3.0f);
  CHECK_EQUAL(file_format("f16").largest_scale(f16.data(), 2), 3.0f);
  CHECK_EQUAL(file_format("bf16").largest_scale(f32.data() + 2, 1), 1.0f);
  std::vector<uint8_t> q40(3 * kQ40BlockBytes, 0xff);
  for (size_t b = 0; b < 3; ++b) std::memset(q40.data() + b * kQ40BlockBytes, 0, 2);
  q40[kQ40BlockBytes + 1] = 0xc2;  // f16 -3
  CHECK_EQUAL(file_format("q40").largest_scale(q40.data(), 3), 3.0f);
  q40[2 * kQ40BlockBytes + 1] = 0xfc;
  CHECK_EQUAL(file_format("q40").largest_scale(q40.data(), 3), kInfinity);
  CHECK_EQUAL(file_format("q40").largest_scale(q40.data(), 0), 0.0f);
}

// A store as a backend has one: each matrix is memory of its own.
class Store : public MatrixStore {
 public:
  uint64_t take(size_t bytes) override {
    memories.emplace_back(bytes);
    return memories.size();
  }
  void write(uint64_t matrix, size_t offset, std::span<const uint8_t> bytes) override {
    largest = std::max(largest, bytes.size());
    std::copy(bytes.begin(), bytes.end(), memories.at(matrix - 1).begin() + offset);
  }

  std::vector<std::vector<uint8_t>> memories;
  size_t largest = 0;
};

// A store gets what the host would hold, however the rows come, and never all at once.
void test_stored() {
  constexpr size_t kRows = 8195, kColumns = 2048;  // 8.9 MiB, and a group that is not whole
  for (const Type type : {Type::q40, Type::f32}) {
    const size_t rows = type == Type::q40 ? kRows : 1501;
    std::vector<uint8_t> data(rows * row_bytes(type, kColumns));
    random_rows(type, {7, 0, rows, 0, kColumns, 0.1f}, data.data());
    const Matrix held(type, rows, kColumns, data);
    Store store;
    Matrix stored(type, rows, kColumns, store);
    CHECK(!stored.empty());
    CHECK_EQUAL(stored.stored(), uint64_t{1});
    CHECK_EQUAL(held.stored(), uint64_t{0});
    ThreadPool pool(3);
    const size_t first = 16 * row_bytes(type, kColumns);
    CHECK_EQUAL(stored.pack(0, std::span(data).first(first), &pool), size_t{16});
    CHECK_EQUAL(stored.pack(16, std::span(data).subspan(first), &pool), rows - 16);
    const std::span<const uint8_t> whole(held.group(0), held.size_bytes());
    CHECK(
        std::equal(whole.begin(), whole.end(), store.memories[0].begin(), store.memories[0].end()));
    CHECK(store.largest < whole.size());
  }
}

}  // namespace

int main() {
  test_file_formats_by_hand();
  test_largest_scales();
  test_f16_every_value();
  test_f16_rounding();
  test_names_and_sizes();
  test_blocks_by_hand();
  test_error_bounds();
  test_q80_twice();
  test_strange_numbers();
  test_packing();
  test_stored();
  test_random_cuts();
  test_random_spread();
  return test::finish();
}
