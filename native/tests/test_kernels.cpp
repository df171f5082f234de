// Every kernel of every instruction set against the scalar table, and the scalar table against
// plain sums in double: on odd sizes, at the ends of the number ranges, and never a byte outside.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "formats/block_codecs.h"
#include "formats/matrix.h"
#include "hearth/cpu.h"
#include "hearth/kernels.h"
#include "hearth/quant.h"
#include "platform/fused.h"
#include "platform/memory.h"

using namespace hearth;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr float kUntouched = -12345.0f;

std::mt19937 generator(42);

std::vector<float> random_floats(size_t count, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& each : x) each = normal(generator);
  return x;
}

struct Quantized {
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<HalfSums> sums;
};

Quantized quantize(const Kernels& kernels, const std::vector<float>& x) {
  const size_t blocks = x.size() / kBlock;
  Quantized out{std::vector<int8_t>(x.size()), std::vector<float>(blocks),
                std::vector<HalfSums>(blocks)};
  kernels.quantize(x.data(), x.size(), out.q.data(), out.scales.data(), out.sums.data());
  return out;
}

void test_quantize(const Kernels& kernels) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float large = std::numeric_limits<float>::max();
  std::vector<std::vector<float>> inputs;
  for (size_t blocks : {1, 2, 5})
    for (float deviation : {1e-38f, 1e-20f, 1.0f, 1e20f})
      inputs.push_back(random_floats(blocks * kBlock, deviation));
  for (float value : {0.0f, -0.0f, tiny, -tiny, 1e-40f, 9e-37f, 1.1e-36f, 3.7e-37f, large, -large})
    inputs.emplace_back(kBlock, value);
  for (float value : {kInfinity, -kInfinity, kNan, -kNan, large, tiny}) {
    for (size_t at : {0, 7, 8, 31}) {
      inputs.push_back(random_floats(2 * kBlock));
      inputs.back()[at] = value;
    }
  }
  inputs.emplace_back();  // all ties: halves round to even
  for (int i = 0; i < 32; ++i) inputs.back().push_back(static_cast<float>(i) + 0.5f);
  inputs.back()[31] = 127.0f;

  for (const auto& x : inputs) {
    const test::Case each("quantize, first number ", x[0]);
    const Quantized got = quantize(kernels, x), expected = quantize(kScalarKernels, x);
    CHECK(got.q == expected.q);
    for (size_t b = 0; b < got.sums.size(); ++b) {
      CHECK_EQUAL(got.sums[b].first, expected.sums[b].first);
      CHECK_EQUAL(got.sums[b].second, expected.sums[b].second);
    }
    CHECK_SAME(got.scales, expected.scales);
    for (size_t b = 0; b < got.scales.size(); ++b) {
      bool finite = true;
      float largest = 0.0f;
      int halves[2] = {};
      for (size_t i = 0; i < kBlock; ++i) {
        const float value = x[b * kBlock + i];
        finite = finite && std::isfinite(value);
        largest = std::max(largest, std::abs(value));
        halves[i / 16] += got.q[b * kBlock + i];
        CHECK(got.q[b * kBlock + i] != -128);  // q40's sums of pairs leave no room for it
      }
      CHECK_EQUAL(got.sums[b].first, static_cast<int16_t>(halves[0]));
      CHECK_EQUAL(got.sums[b].second, static_cast<int16_t>(halves[1]));
      CHECK_EQUAL(std::isnan(got.scales[b]), !finite);
      if (!finite || largest < kSmallestQuantized) {
        CHECK_EQUAL(halves[0], 0);
        CHECK_EQUAL(halves[1], 0);
        continue;
      }
      for (size_t i = 0; i < kBlock; ++i) {
        CHECK_NEAR(static_cast<double>(got.scales[b]) * got.q[b * kBlock + i], x[b * kBlock + i],
                   static_cast<double>(largest) / 127.0 * 0.5001);
      }
    }
  }
}

struct Weights {
  Type type;
  size_t rows, columns;
  std::vector<uint8_t> bytes;

  Matrix packed() const { return Matrix(type, rows, columns, bytes); }
};

// The floats that scale blocks: their f16, or a byte of exponent.
template <typename Value>
void set_block_scales(Weights& weights, Value value) {
  const TypeInfo& info = info_of(weights.type);
  for (size_t at = 0; at < weights.bytes.size(); at += info.block_bytes) {
    for (const Piece& piece : pieces_of(weights.type)) {
      const bool high_bits = weights.type == Type::iq4_xs && piece.offset == 2;
      if (piece.bytes > 2 || high_bits) continue;
      const float scale = value(at);
      const uint16_t half = f32_to_f16(scale);
      if (piece.bytes == 2) std::memcpy(weights.bytes.data() + at + piece.offset, &half, 2);
      if (piece.bytes == 1)
        weights.bytes[at] = static_cast<uint8_t>(128 + std::max(-20, std::ilogb(scale)));
    }
  }
}

// Any codes and integer scales, with f16 scales of a usual size.
Weights foreign_weights(Type type, size_t rows, size_t columns) {
  Weights weights{type, rows, columns, {}};
  weights.bytes.resize(rows * row_bytes(type, columns));
  for (uint8_t& each : weights.bytes) each = static_cast<uint8_t>(generator());
  set_block_scales(weights, [](size_t) { return random_floats(1, 0.1f)[0]; });
  return weights;
}

Weights random_weights(Type type, size_t rows, size_t columns) {
  Weights weights{type, rows, columns, {}};
  weights.bytes.resize(rows * row_bytes(type, columns));
  for (size_t r = 0; r < rows; ++r) {
    const std::vector<float> row = random_floats(columns, 0.1f);
    quantize_row(type, row.data(), columns, weights.bytes.data() + r * row_bytes(type, columns));
  }
  return weights;
}

// Y of [tokens, stride], of which the kernel may write `rows` a token.
std::vector<float> multiply(const Kernels& kernels, const Matrix& matrix,
                            const std::vector<float>& x, const Quantized& q, size_t tokens) {
  const size_t stride = matrix.rows() + 3;
  std::vector<float> y(tokens * stride, kUntouched);
  Buffer scratch(kernels.matmul_scratch);
  // What an earlier product left there has no effect.
  std::fill_n(scratch.data(), scratch.size(), uint8_t{0xff});
  const MatmulArgs args = {.weights = matrix.group(0),
                           .group_bytes = matrix.group_bytes(),
                           .groups = matrix.groups(),
                           .columns = matrix.columns(),
                           .rows = matrix.rows(),
                           .tokens = tokens,
                           .y = y.data(),
                           .y_stride = stride,
                           .scratch = scratch.data()};
  const QuantizedRows quantized = {
      .q = q.q.data(), .scales = q.scales.data(), .sums = q.sums.data()};
  hearth::multiply(kernels, matrix.type(), args, x.data(), quantized);
  return y;
}

// Magnitudes of the terms of each element of a row, [columns]: of a type with minima, two.
std::vector<double> term_magnitudes(const Weights& weights, size_t row,
                                    const std::vector<float>& elements) {
  std::vector<double> terms(elements.begin(), elements.end());
  for (double& each : terms) each = std::abs(each);
  if (!has_minimum(weights.type)) return terms;
  const TypeInfo& info = info_of(weights.type);
  const uint8_t* block = weights.bytes.data() + row * row_bytes(weights.type, weights.columns);
  for (size_t c = 0; c < weights.columns; c += info.block, block += info.block_bytes) {
    BlockPart parts[kLargestBlock / kBlock];
    decode_block(weights.type, block, parts);
    for (size_t i = 0; i < info.block; ++i) {
      const BlockPart& part = parts[i / kBlock];
      terms[c + i] += 2.0 * std::abs(static_cast<double>(part.minimum) *
                                     part.minima[i % kBlock / (kBlock / 2)]);
    }
  }
  return terms;
}

// The order of f32 sums costs at most one rounding for each term: columns * epsilon of the sum of
// magnitudes. Activations are taken as the kernel has them (quantized, where it has them so).
void check_product(const Kernels& kernels, const Weights& weights, size_t tokens,
                   const std::vector<float>& x) {
  const Matrix matrix = weights.packed();
  const Quantized q = is_quantized(weights.type) ? quantize(kScalarKernels, x) : Quantized{};
  const std::vector<float> y = multiply(kernels, matrix, x, q, tokens);
  CHECK_SAME(y, multiply(kScalarKernels, matrix, x, q, tokens));
  const size_t stride = weights.rows + 3;
  std::vector<float> row(weights.columns);
  for (size_t r = 0; r < weights.rows; ++r) {
    matrix.read_row(r, row.data());
    const std::vector<double> terms = term_magnitudes(weights, r, row);
    for (size_t t = 0; t < tokens; ++t) {
      double sum = 0.0, magnitude = 0.0;
      for (size_t c = 0; c < weights.columns; ++c) {
        const size_t at = t * weights.columns + c;
        const double value =
            q.q.empty() ? x[at] : static_cast<double>(q.scales[at / kBlock]) * q.q[at];
        sum += row[c] * value;
        magnitude += std::abs(terms[c] * value);
      }
      if (std::isnan(sum)) {
        CHECK(std::isnan(y[t * stride + r]));
      } else {
        CHECK_NEAR(y[t * stride + r], sum,
                   static_cast<double>(weights.columns) * kEpsilon * magnitude + 1e-37);
      }
    }
  }
  for (size_t t = 0; t < tokens; ++t)
    for (size_t i = weights.rows; i < stride; ++i) CHECK_EQUAL(y[t * stride + i], kUntouched);
}

void test_matmul(const Kernels& kernels) {
  for (const TypeInfo& info : kTypeInfos) {
    for (size_t rows : {1, 3, 7, 8, 9, 15, 16, 17, 24, 29}) {
      for (size_t columns : {1, 2, 3, 31, 32, 33, 96, 160, 256}) {
        // Blocks of 256 come in few shapes, for time.
        if (columns % info.block != 0 || (info.block == 256 && rows % 2 == 0)) continue;
        const Weights weights = random_weights(info.type, rows, columns);
        for (size_t tokens = 1; tokens <= 9; ++tokens) {
          const test::Case each(info.name, " ", rows, " x ", columns, ", ", tokens, " tokens");
          check_product(kernels, weights, tokens, random_floats(tokens * columns));
        }
      }
    }
  }
}

// Tiles of a larger product: more groups, tokens and columns than any variant takes at once, with a
// rest of each.
void test_matmul_tiles(const Kernels& kernels) {
  for (const TypeInfo& info : kTypeInfos) {
    for (size_t columns : {9 * kBlock, 17 * kBlock, 3 * kLargestBlock}) {
      if (columns % info.block != 0) continue;
      const bool foreign = is_quantized(info.type);
      const Weights weights = foreign ? foreign_weights(info.type, 43, columns)
                                      : random_weights(info.type, 43, columns);
      for (size_t tokens : {1, 8, 12, 15, 19}) {
        const test::Case each(info.name, " 43 x ", columns, ", ", tokens, " tokens");
        check_product(kernels, weights, tokens, random_floats(tokens * columns));
      }
    }
  }
  // More rows, tokens and columns than weights are unpacked for at a time, and odd ones.
  for (Type type : {Type::f32, Type::f16, Type::bf16, Type::q40, Type::q4_k, Type::q6_k}) {
    const size_t rows = is_quantized(type) ? 43 : 163;
    const size_t blocks = info_of(type).block == kLargestBlock ? 5 * 8 : 35;
    const size_t columns = is_quantized(type) ? blocks * kBlock : 259;
    const Weights weights = random_weights(type, rows, columns);
    for (size_t tokens : {63, 130}) {
      const test::Case each(type_name(type), " ", rows, " x ", columns, ", ", tokens, " tokens");
      check_product(kernels, weights, tokens, random_floats(tokens * columns));
    }
  }
}

// Runs `work` on a thread with the smallest stack of common C libraries, musl's.
void run_on_small_stack(std::function<void()> work) {
  constexpr size_t kStackBytes = 128 << 10;
  pthread_attr_t attributes;
  CHECK_EQUAL(pthread_attr_init(&attributes), 0);
  CHECK_EQUAL(pthread_attr_setstacksize(&attributes, kStackBytes), 0);
  const auto run = [](void* at) -> void* {
    (*static_cast<std::function<void()>*>(at))();
    return nullptr;
  };
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, run, &work);
  CHECK_EQUAL(error, 0);
  if (error == 0) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

// Products of many tokens keep their intermediate results in the caller's scratch memory.
void test_matmul_small_stack(const Kernels& kernels) {
  constexpr size_t kRows = 163, kColumns = 5 * kLargestBlock, kTokens = 130;
  for (Type type : {Type::f32, Type::f16, Type::q80, Type::q40, Type::q2_k}) {
    const test::Case each(type_name(type), " on a small stack");
    const Matrix matrix = random_weights(type, kRows, kColumns).packed();
    const std::vector<float> x = random_floats(kTokens * kColumns);
    const Quantized q = is_quantized(type) ? quantize(kScalarKernels, x) : Quantized{};
    std::vector<float> y;
    run_on_small_stack([&] { y = multiply(kernels, matrix, x, q, kTokens); });
    CHECK_SAME(y, multiply(kernels, matrix, x, q, kTokens));
  }
}

// Where integers come closest to overflow: every weight and every activation at an end of its
// range. Sixteen blocks in a row, so that sums of blocks would show it too.
void test_matmul_extremes(const Kernels& kernels) {
  constexpr size_t kColumns = 16 * kBlock;
  for (const TypeInfo& info : kTypeInfos) {
    if (!is_quantized(info.type)) continue;
    for (int byte : {0x00, 0x7f, 0x80, 0x81, 0xff, 0x0f, 0xf0, 0x88}) {
      for (int pattern = 0; pattern < 3; ++pattern) {
        const test::Case each(info.name, " bytes ", byte, " pattern ", pattern);
        Weights weights{info.type, 9, kColumns, {}};
        weights.bytes.assign(9 * row_bytes(info.type, kColumns), static_cast<uint8_t>(byte));
        set_block_scales(weights, [](size_t) { return 1.0f; });
        std::vector<float> x(5 * kColumns);
        for (size_t i = 0; i < x.size(); ++i) {
          const bool minus = pattern == 1 || (pattern == 2 && i % 2 == 1);
          x[i] = minus ? -127.0f : 127.0f;
        }
        check_product(kernels, weights, 5, x);
      }
    }
  }
  // Every exponent of mxfp4: denormal scales, and NaN.
  Weights exponents = foreign_weights(Type::mxfp4, 16, kColumns);
  for (size_t b = 0; b < 256; ++b) exponents.bytes[b * 17] = static_cast<uint8_t>(b);
  check_product(kernels, exponents, 3, random_floats(3 * kColumns, 1e-6f));
  for (float value : {kNan, kInfinity}) {  // what is not a number stays visible, in its row only
    for (const TypeInfo& info : kTypeInfos) {
      const test::Case each(info.name, " with ", value);
      std::vector<float> x = random_floats(3 * 256);
      x[256 + 5] = value;
      const Weights weights = random_weights(info.type, 9, 256);
      const Matrix matrix = weights.packed();
      const Quantized q = quantize(kernels, x);
      const std::vector<float> y = multiply(kernels, matrix, x, q, 3);
      CHECK_SAME(y, multiply(kScalarKernels, matrix, x, q, 3));
      for (size_t r = 0; r < 9; ++r) {
        CHECK(std::isfinite(y[r]));
        CHECK(!std::isfinite(y[12 + r]));
        CHECK(std::isfinite(y[24 + r]));
      }
    }
  }
}

void test_elementwise(const Kernels& kernels) {
  for (size_t size = 1; size <= 70; ++size) {
    const test::Case each("size ", size);
    const std::vector<float> x = random_floats(size), w = random_floats(size);
    std::vector<float> got(size + 1, kUntouched), expected(size + 1, kUntouched);
    kernels.rms_norm(x.data(), w.data(), size, 1e-5f, got.data());
    kScalarKernels.rms_norm(x.data(), w.data(), size, 1e-5f, expected.data());
    CHECK_SAME(got, expected);
    double squares = 0.0;
    for (float value : x) squares += static_cast<double>(value) * value;
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
    for (size_t i = 0; i < size; ++i)
      CHECK_NEAR(got[i], x[i] * scale * w[i], 8 * kEpsilon * std::abs(x[i] * scale * w[i]));

    got = expected = x;
    got.push_back(kUntouched);
    expected.push_back(kUntouched);
    kernels.add(got.data(), w.data(), size);
    for (size_t i = 0; i < size; ++i) expected[i] += w[i];
    CHECK_SAME(got, expected);

    const size_t half = size;
    const std::vector<float> angles = random_floats(half), head = random_floats(2 * half);
    std::vector<float> cos(half), sin(half);
    for (size_t i = 0; i < half; ++i) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
    got = expected = head;
    got.push_back(kUntouched);
    expected.push_back(kUntouched);
    kernels.rope(got.data(), cos.data(), sin.data(), half);
    kScalarKernels.rope(expected.data(), cos.data(), sin.data(), half);
    CHECK_SAME(got, expected);
    for (size_t i = 0; i < half; ++i) {  // a rotation keeps the length
      const double before = std::hypot(head[i], head[i + half]);
      CHECK_NEAR(std::hypot(got[i], got[i + half]), before, 4 * kEpsilon * before);
    }
  }
}

// The sums have at most `size` roundings, of terms that add up to at most size * largest.
void test_layer_norm(const Kernels& kernels) {
  for (size_t size = 1; size <= 67; ++size) {
    const test::Case each("layer norm of ", size);
    const std::vector<float> x = random_floats(size, 3.0f), weight = random_floats(size, 2.0f),
                             bias = random_floats(size, 2.0f);
    std::vector<float> y(size + 1, kUntouched);
    kernels.layer_norm(x.data(), weight.data(), bias.data(), size, 1e-3f, y.data());
    CHECK_EQUAL(y[size], kUntouched);
    double mean = 0.0, variance = 0.0;
    for (float value : x) mean += value;
    mean /= static_cast<double>(size);
    for (float value : x) variance += (value - mean) * (value - mean);
    const double scale = 1.0 / std::sqrt(variance / static_cast<double>(size) + 1e-3);
    // Of a value less the mean: the mean's error, enlarged by scale, which is at most 32.
    const double error = static_cast<double>(size) * kEpsilon * 3.0;
    for (size_t i = 0; i < size; ++i) {
      const double expected = (x[i] - mean) * scale * weight[i] + bias[i];
      CHECK_NEAR(y[i], expected, 4 * error * scale * std::abs(weight[i]) + 4 * kEpsilon * 10.0);
    }
    std::vector<float> same = x;
    kernels.layer_norm(same.data(), weight.data(), bias.data(), size, 1e-3f, same.data());
    same.push_back(kUntouched);
    CHECK_SAME(same, y);
  }
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu_tanh:
      // (1 + tanh(u)) / 2, written so that it does not cancel.
      return x / (1.0 +
                  std::exp(-2.0 * std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::gelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::relu_squared:
      return x > 0.0 ? x * x : 0.0;
  }
  return 0.0;
}

// silu: exp of a vector kernel is a polynomial good to about two units in the last place; the
// quotient and the product add one each: four epsilons. Below gate = -88 exp is held at e^88, where
// the true result is under |gate| * e^-88 * |up| anyway. gelu: 1 + erf cancels, to an error of
// epsilon * |x|. gelu_tanh: the exponent, at most 88 where it matters, has an error of four
// epsilons of itself, which is a relative error of the result.
double activation_error(Activation activation, double x, double expected) {
  const double tiny = std::abs(x) * std::exp(-87.9);
  if (activation == Activation::gelu) return 4 * kEpsilon * std::abs(x);
  if (activation == Activation::gelu_tanh)
    return (4 + 4 * 88) * kEpsilon * std::abs(expected) + tiny;
  return 4 * kEpsilon * std::abs(expected) + tiny;
}

void test_activations(const Kernels& kernels) {
  for (size_t kind = 0; kind < kActivations; ++kind) {
    const auto activation = static_cast<Activation>(kind);
    for (size_t size = 1; size <= 33; ++size) {
      const test::Case each("activation ", kind, " of ", size);
      std::vector<float> gate = random_floats(size, 30.0f), up = random_floats(size, 3.0f);
      if (size > 20) gate[0] = 100.0f, gate[1] = -100.0f, gate[2] = 0.0f, gate[3] = -87.9f;
      for (size_t i = 4; i < size; i += 3) gate[i] *= 0.05f;
      for (const bool gated : {true, false}) {
        std::vector<float> got = gate;
        got.push_back(kUntouched);
        kernels.activate[kind](got.data(), gated ? up.data() : nullptr, size);
        CHECK_EQUAL(got[size], kUntouched);
        for (size_t i = 0; i < size; ++i) {
          const double factor = gated ? up[i] : 1.0, alone = activated(activation, gate[i]);
          CHECK_NEAR(got[i], alone * factor,
                     activation_error(activation, gate[i], alone) * std::abs(factor) +
                         kEpsilon * std::abs(alone * factor));
        }
      }
      gate.assign(size, 1.0f);
      gate[size / 2] = kNan;
      kernels.activate[kind](gate.data(), up.data(), size);
      for (size_t i = 0; i < size; ++i) CHECK_EQUAL(std::isnan(gate[i]), i == size / 2);
    }
  }
}

struct Attention {
  size_t heads, size, slots;
  std::vector<float> q, keys, values;  // keys and values: [slots, size]
};

// [heads, size]: pages of `page` slots, one after another, then divided by the sums.
std::vector<float> attend(const Kernels& kernels, const Attention& a, size_t page, bool half) {
  const size_t stride = (page + kKeySlots - 1) / kKeySlots * kKeySlots;
  std::vector<float> scratch(a.heads * stride + 1, kUntouched), shrink(a.heads + 1, kUntouched),
      largest(a.heads, -kInfinity), sum(a.heads, 0.0f), out(a.heads * a.size + 1, 0.0f);
  out.back() = kUntouched;
  std::vector<uint16_t> values(a.values.size());
  kernels.to_f16(a.values.data(), values.size(), values.data());
  for (size_t s = 0; s < a.slots; s += page) {
    const size_t slots = std::min(page, a.slots - s);
    // The other way round; what stands behind the slots must not show.
    std::vector<float> keys(a.size * stride, s % 2 == 0 ? kNan : 3e4f);
    for (size_t slot = 0; slot < slots; ++slot) {
      for (size_t i = 0; i < a.size; ++i) keys[i * stride + slot] = a.keys[(s + slot) * a.size + i];
    }
    std::vector<uint16_t> halves(keys.size());
    kernels.to_f16(keys.data(), keys.size(), halves.data());
    const AttendArgs args = {.q = a.q.data(),
                             .keys = half ? static_cast<const void*>(halves.data()) : keys.data(),
                             .values = half ? static_cast<const void*>(values.data() + s * a.size)
                                            : a.values.data() + s * a.size,
                             .queries = a.heads,
                             .key_size = a.size,
                             .value_size = a.size,
                             .slots = slots,
                             .stride = stride,
                             .scratch = scratch.data(),
                             .shrink = shrink.data(),
                             .largest = largest.data(),
                             .sum = sum.data(),
                             .out = out.data()};
    half ? kernels.attend_f16(args) : kernels.attend_f32(args);
  }
  CHECK_EQUAL(scratch.back(), kUntouched);
  CHECK_EQUAL(shrink.back(), kUntouched);
  CHECK_EQUAL(out.back(), kUntouched);
  out.pop_back();
  for (size_t i = 0; i < out.size(); ++i) out[i] /= sum[i / a.size];
  return out;
}

// A score is a sum of `size` products: its error is at most size * epsilon * sum |q k|. That is a
// relative error of its weight, twice over (the largest score is subtracted). The roundings of exp
// and of two sums over the slots come on top. The result is a mean of values under these weights.
void test_attend(const Kernels& kernels) {
  for (size_t size : {2, 6, 8, 16, 20, 24, 32, 40, 64, 100, 128}) {
    for (size_t slots : {1, 2, 7, 8, 9, 16, 33}) {
      for (size_t heads : {1, 2, 3, 4, 5, 8, 13}) {
        Attention a{heads,
                    size,
                    slots,
                    random_floats(heads * size, 0.7f),
                    random_floats(slots * size),
                    random_floats(slots * size)};
        for (bool half : {false, true}) {
          if (half) {  // numbers that f16 has, so that one reference serves both
            for (auto* each : {&a.keys, &a.values})
              for (float& x : *each) x = f16_to_f32(f32_to_f16(x));
          }
          for (size_t page : {size_t{8}, size_t{5}, slots}) {
            const test::Case each("attend size ", size, " slots ", slots, " heads ", heads,
                                  " page ", page, half ? " f16" : " f32");
            const std::vector<float> out = attend(kernels, a, page, half);
            // How queries are put together must not show in the numbers.
            std::vector<float> alone;
            for (size_t h = 0; h < heads; ++h) {
              Attention one = a;
              one.heads = 1;
              one.q = {a.q.begin() + static_cast<std::ptrdiff_t>(h * size),
                       a.q.begin() + static_cast<std::ptrdiff_t>((h + 1) * size)};
              const std::vector<float> its = attend(kernels, one, page, half);
              alone.insert(alone.end(), its.begin(), its.end());
            }
            CHECK_SAME(out, alone);
            for (size_t h = 0; h < heads; ++h) {
              std::vector<double> scores(slots);
              double worst = 0.0, largest = -1e300, total = 0.0, most = 0.0;
              for (size_t s = 0; s < slots; ++s) {
                double magnitude = 0.0;
                for (size_t i = 0; i < size; ++i) {
                  const double product =
                      static_cast<double>(a.q[h * size + i]) * a.keys[s * size + i];
                  scores[s] += product;
                  magnitude += std::abs(product);
                }
                worst = std::max(worst, magnitude);
                largest = std::max(largest, scores[s]);
              }
              for (double& score : scores) total += score = std::exp(score - largest);
              for (float value : a.values) most = std::max<double>(most, std::abs(value));
              const double relative = 2 * static_cast<double>(size) * kEpsilon * worst +
                                      static_cast<double>(2 * slots + 8) * kEpsilon;
              for (size_t i = 0; i < size; ++i) {
                double expected = 0.0;
                for (size_t s = 0; s < slots; ++s)
                  expected += scores[s] / total * a.values[s * size + i];
                CHECK_NEAR(out[h * size + i], expected, relative * most);
              }
            }
          }
        }
      }
    }
  }
  Attention a{2, 32, 19, random_floats(64), random_floats(19 * 32), random_floats(19 * 32)};
  a.keys[3 * 32 + 1] = kNan;  // must not vanish in a clamp
  a.q[1] = a.q[33] = 0.5f;
  for (float value : attend(kernels, a, 8, false)) CHECK(std::isnan(value));
  a.keys[3 * 32 + 1] = 1e30f;  // one position takes all; e^-1e30 is 0
  a.q[1] = 1.0f;
  const std::vector<float> out = attend(kernels, a, 8, false);
  for (size_t i = 0; i < 32; ++i)
    CHECK_NEAR(out[i], a.values[3 * 32 + i], 1e-6 * std::abs(out[i]) + 1e-30);
}

// The widths of vectors on x86-64 do not show in attention: AVX-512 has the numbers of AVX2.
void test_attend_widths(const Kernels& kernels) {
  const Kernels* narrow = find_kernels("avx2");
  if (narrow == nullptr || kernels.name == kScalarKernels.name) return;
  for (size_t size : {24, 64, 80, 128}) {
    for (size_t heads : {1, 4, 5, 9, 17}) {
      for (size_t slots : {1, 8, 15, 16, 17, 24, 25, 31, 32, 100}) {
        const Attention a{heads,
                          size,
                          slots,
                          random_floats(heads * size, 0.7f),
                          random_floats(slots * size),
                          random_floats(slots * size)};
        for (size_t page : {8, 16, 32, 48}) {
          const test::Case each("attend size ", size, " slots ", slots, " heads ", heads, " page ",
                                page);
          CHECK_SAME(attend(kernels, a, page, false), attend(*narrow, a, page, false));
          CHECK_SAME(attend(kernels, a, page, true), attend(*narrow, a, page, true));
        }
      }
    }
  }
}

void test_to_f16(const Kernels& kernels) {
  std::vector<float> x = random_floats(1001, 100.0f);
  for (uint32_t i = 0; i < 20000; ++i)
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(generator())));
  for (float value : {0.0f, -0.0f, 65504.0f, 65519.9f, 65520.0f, 1e-8f, 3e-8f, kInfinity, kNan})
    x.push_back(value);
  std::vector<uint16_t> got(x.size());
  kernels.to_f16(x.data(), x.size(), got.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const test::Case each("to_f16 of ", x[i]);
    if (std::isnan(x[i])) {
      CHECK((got[i] & 0x7fff) > 0x7c00);
    } else {
      CHECK_EQUAL(got[i], f32_to_f16(std::clamp(x[i], -65504.0f, 65504.0f)));
    }
  }
}

// What comes over the wire, placed or added: on sizes that leave a tail, and with every f16 there
// is.
void test_from_wire(const Kernels& kernels) {
  for (bool add : {false, true}) {
    for (size_t size : {size_t{1}, size_t{7}, size_t{8}, size_t{33}, size_t{65536}}) {
      const test::Case each(add ? "add" : "place", " f16 x ", size);
      std::vector<uint16_t> halves(size);
      for (size_t i = 0; i < size; ++i) halves[i] = static_cast<uint16_t>(i * 257);
      const std::vector<float> before = random_floats(size);
      std::vector<float> got = before, expected = before;
      got.push_back(kUntouched);
      expected.push_back(kUntouched);
      kernels.from_f16(halves.data(), size, got.data(), add);
      kScalarKernels.from_f16(halves.data(), size, expected.data(), add);
      CHECK_SAME(got, expected);
      for (size_t i = 0; i < size; ++i) {
        const float number = f16_to_f32(halves[i]);
        if (!std::isnan(number)) CHECK_EQUAL(got[i], add ? before[i] + number : number);
      }
    }
    for (size_t blocks : {1, 2, 5}) {
      const test::Case each(add ? "add" : "place", " q80 x ", blocks);
      std::vector<int8_t> q(blocks * kBlock);
      for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<int8_t>(i * 37);
      std::vector<float> scales = random_floats(blocks);
      if (blocks == 5) scales[3] = kNan;
      std::vector<float> got = random_floats(q.size()), expected = got;
      got.push_back(kUntouched);
      expected.push_back(kUntouched);
      kernels.from_q80(q.data(), scales.data(), q.size(), got.data(), add);
      kScalarKernels.from_q80(q.data(), scales.data(), q.size(), expected.data(), add);
      CHECK_SAME(got, expected);
    }
  }
}

// Where the CPU is known (an emulated one), so is what it offers.
void test_offer() {
  const char* expected = std::getenv("HEARTH_EXPECTED_INSTRUCTION_SETS");
  if (expected == nullptr) return;
  std::string names;
  for (const auto& name : instruction_sets()) names += (names.empty() ? "" : " ") + name;
  CHECK_EQUAL(names, std::string(expected));
}

void test_choice() {
  const std::string first = kernels_in_use().name;
  CHECK_EQUAL(instruction_sets().back(), std::string("scalar"));
  CHECK(find_kernels("no such thing") == nullptr);
  CHECK_THROWS(use_kernels("mmx"), std::invalid_argument, "scalar");
  CHECK_EQUAL(std::string(kernels_in_use().name), first);
  use_kernels("scalar");
  CHECK_EQUAL(std::string(kernels_in_use().name), std::string("scalar"));
  use_kernels(first);
}

// Numbers of all sizes: products that cancel with what is added, ties, denormals, infinities, NaN.
[[maybe_unused]] void test_fused() {
  std::mt19937 random(9);
  const auto bits = [&] { return std::bit_cast<float>(static_cast<uint32_t>(random())); };
  std::uniform_real_distribution<float> near_one(0.5f, 2.0f);
  for (int i = 0; i < 1'000'000; ++i) {
    const bool plain = i % 2 == 0;
    const float a = plain ? near_one(random) : bits(), b = plain ? near_one(random) : bits();
    const float c = i % 3 == 0 ? -(a * b) : plain ? near_one(random) * 0x1p-24f : bits();
    const float expected = std::fma(a, b, c), found = fused_by_doubles(a, b, c);
    if (std::isnan(expected)) {
      CHECK(std::isnan(found));
    } else {
      CHECK_EQUAL(std::bit_cast<uint32_t>(found), std::bit_cast<uint32_t>(expected));
    }
  }
}

}  // namespace

int main() {
#ifndef _WIN32  // where std::fma rounds twice
  test_fused();
#endif
  test_offer();
  test_choice();
  for (const auto& name : instruction_sets()) {
    const test::Case each("instruction set ", name);
    const Kernels& kernels = *find_kernels(name);
    test_quantize(kernels);
    test_matmul(kernels);
    test_matmul_tiles(kernels);
    test_matmul_small_stack(kernels);
    test_matmul_extremes(kernels);
    test_elementwise(kernels);
    test_layer_norm(kernels);
    test_activations(kernels);
    test_attend(kernels);
    test_attend_widths(kernels);
    test_to_f16(kernels);
    test_from_wire(kernels);
  }
  return test::finish();
}
