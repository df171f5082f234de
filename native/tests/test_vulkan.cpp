// Shards on a GPU against shards on the CPU, of the same weights: all weight types, KV types, odd
// shapes, windows, softcaps, sinks, gates, norms, two ranks. Needs a driver; lavapipe (Mesa's
// driver that computes on the CPU) serves. Exit code 77: there is none.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "configs.h"
#include "hearth/cpu.h"
#include "hearth/devices.h"
#include "hearth/quant.h"
#include "hearth/shard.h"

using namespace hearth;

namespace {

constexpr const char* kGpu = "vulkan:0";
constexpr size_t kRows = 11;

struct Shape {
  size_t hidden = 64, heads = 4, kv_heads = 2, head_size = 32, units = 96, vocab = 37;
};

ShardConfig config_of(const Shape& shape) {
  ShardConfig config = test::block_config({.hidden_size = shape.hidden,
                                           .layers = {0, 2},
                                           .heads = {0, shape.heads},
                                           .kv_heads = {0, shape.kv_heads},
                                           .head_size = shape.head_size,
                                           .units = {0, shape.units}});
  config.vocab = {0, shape.vocab};
  config.vocab_size = shape.vocab;
  config.embedding = true;
  return config;
}

bool is_vector(const SliceShape& shape) { return shape.first == 1; }

std::unique_ptr<Shard> make(const ShardConfig& config, Type type, const std::string& device) {
  auto shard = std::make_unique<Shard>(config, 2, std::vector<int>{}, device);
  for (const auto& [name, shape] : shard->expected()) {
    const uint64_t seed = std::hash<std::string>{}(name);
    const auto [rows, columns] = shape;
    if (is_vector(shape)) {
      // Around one, as norms are; biases may be as large.
      std::vector<float> numbers(columns);
      random_rows(Type::f32, {seed, 0, 1, 0, columns, 0.3f},
                  reinterpret_cast<uint8_t*>(numbers.data()));
      for (float& number : numbers) number += 1.0f;
      shard->load(name, Type::f32,
                  {reinterpret_cast<const uint8_t*>(numbers.data()), columns * sizeof(float)});
      continue;
    }
    std::vector<uint8_t> bytes(rows * row_bytes(type, columns));
    random_rows(type, {seed, 0, rows, 0, columns, 0.15f}, bytes.data());
    shard->load(name, type, bytes);
  }
  return shard;
}

struct Output {
  std::vector<float> x, logits;
};

// A prompt of kRows - 2 rows beside another sequence, then one row each: page borders are crossed.
std::vector<Output> run(Shard& shard) {
  const ShardConfig& config = shard.config();
  const std::vector<uint32_t> first_pages = {3, 0, 7}, second_pages = {5, 9};
  std::vector<Output> outputs;
  const auto step = [&](const std::vector<SequenceStep>& sequences,
                        const std::vector<uint32_t>& output_rows) {
    std::vector<uint32_t> tokens, positions;
    for (const SequenceStep& sequence : sequences) {
      for (size_t r = 0; r < sequence.rows; ++r) {
        positions.push_back(static_cast<uint32_t>(sequence.position + r));
        tokens.push_back(
            static_cast<uint32_t>((7 * positions.back() + sequence.rows) % config.vocab_size));
      }
    }
    Output out;
    out.x.resize(tokens.size() * config.row_size());
    out.logits.resize(output_rows.size() * config.vocab.size());
    shard.embed(tokens, positions, out.x.data());
    shard.step(out.x, sequences, output_rows, out.logits.data(), nullptr);
    outputs.push_back(std::move(out));
  };
  step({{kRows - 2, 0, first_pages}, {2, 0, second_pages}}, {kRows - 3, kRows - 1});
  step({{1, kRows - 2, first_pages}, {1, 2, second_pages}}, {0, 1});
  step({{1, kRows - 1, first_pages}}, {0});
  return outputs;
}

// Sums on the GPU have another order. Of floats the difference is rounding. A quantized activation
// can become the next number of its scale, a 127th of the block's largest, as between the CPU's
// instruction sets (test_shard.cpp).
double bound(Type type) { return is_quantized(type) ? 0.02 : 2e-4; }

void compare(const ShardConfig& config, Type type) {
  const auto cpu = make(config, type, "cpu");
  const auto gpu = make(config, type, kGpu);
  const std::vector<Output> expected = run(*cpu), got = run(*gpu);
  for (size_t s = 0; s < expected.size(); ++s) {
    const test::Case each("step ", s);
    const auto near = [&](const std::vector<float>& a, const std::vector<float>& b) {
      CHECK_EQUAL(a.size(), b.size());
      double largest = 1.0;
      for (const float value : b) largest = std::max(largest, std::abs(static_cast<double>(value)));
      for (size_t i = 0; i < a.size(); ++i) {
        CHECK(std::isfinite(a[i]));
        CHECK_NEAR(a[i], b[i], bound(type) * largest);
      }
    };
    near(got[s].x, expected[s].x);
    near(got[s].logits, expected[s].logits);
  }
  CHECK_EQUAL(gpu->kv_pages(), cpu->kv_pages());
  CHECK_EQUAL(gpu->kv_bytes(), cpu->kv_bytes());
}

void test_types() {
  for (const TypeInfo& info : kTypeInfos) {
    const test::Case each(info.name);
    // Large blocks want rows of 256 columns.
    const Shape shape =
        info.block == 256 ? Shape{.hidden = 256, .heads = 8, .units = 512} : Shape{};
    compare(config_of(shape), info.type);
  }
}

void test_kv_types() {
  for (const KvType type : {KvType::f32, KvType::f16}) {
    const test::Case each("KV type ", static_cast<int>(type));
    ShardConfig config = config_of({});
    config.kv_type = type;
    compare(config, Type::f32);
  }
}

void test_odd_shapes() {
  const Shape shapes[] = {
      {.hidden = 33, .heads = 3, .kv_heads = 1, .head_size = 6, .units = 17, .vocab = 9},
      {.hidden = 1100, .heads = 2, .kv_heads = 2, .head_size = 130, .units = 1030, .vocab = 300},
      {.hidden = 8, .heads = 6, .kv_heads = 3, .head_size = 2, .units = 1, .vocab = 2}};
  for (const Shape& shape : shapes) {
    const test::Case each("hidden ", shape.hidden);
    for (const Type type : {Type::f32, Type::f16, Type::bf16}) compare(config_of(shape), type);
  }
}

// Everything that a block may have beside Llama's, one at a time.
void test_variants() {
  const std::pair<const char*, std::function<void(ShardConfig&, BlockConfig&, AttentionConfig&)>>
      variants[] = {
          {"window", [](auto&, auto&, auto& attention) { attention.window = 5; }},
          {"softcap", [](auto&, auto&, auto& attention) { attention.softcap = 3.0f; }},
          {"sinks", [](auto&, auto&, auto& attention) { attention.sinks = true; }},
          {"gate", [](auto&, auto&, auto& attention) { attention.gate = true; }},
          {"biases",
           [](auto&, auto& block, auto& attention) {
             attention.bias = attention.output_bias = true;
             block.feed_forward.bias = block.feed_forward.output_bias = true;
           }},
          {"head norms", [](auto&, auto&, auto& attention) { attention.head_norm = true; }},
          {"value norm", [](auto&, auto&, auto& attention) { attention.value_norm = true; }},
          {"keys as values",
           [](auto&, auto&, auto& attention) {
             attention.keys_as_values = attention.value_norm = attention.head_norm = true;
           }},
          {"temperature",
           [](auto&, auto&, auto& attention) {
             attention.temperature = TemperatureConfig{.slope = 0.5f, .length = 3.0f};
           }},
          {"no rotation", [](auto&, auto&, auto& attention) { attention.rope.reset(); }},
          {"part of a head rotated",
           [](auto& config, auto&, auto&) { config.ropes[0].frequencies.resize(4); }},
          {"layer norms", [](auto& config, auto&, auto&) { config.norm.kind = NormKind::layer; }},
          {"output norms",
           [](auto&, auto& block, auto&) {
             block.output_norms = true;
             block.residual_scale = 0.7f;
           }},
          {"no input norms", [](auto&, auto& block, auto&) { block.input_norms = false; }},
          {"layer scale", [](auto&, auto& block, auto&) { block.layer_scale = true; }},
          {"no gate", [](auto&, auto& block, auto&) { block.feed_forward.gated = false; }},
          {"clamp",
           [](auto&, auto& block, auto&) {
             block.feed_forward.clamp = GateClamp{.limit = 0.5f, .factor = 1.7f, .offset = 1.0f};
           }},
          {"gelu_tanh", [](auto&, auto& block,
                           auto&) { block.feed_forward.activation = Activation::gelu_tanh; }},
          {"gelu",
           [](auto&, auto& block, auto&) { block.feed_forward.activation = Activation::gelu; }},
          {"relu_squared", [](auto&, auto& block,
                              auto&) { block.feed_forward.activation = Activation::relu_squared; }},
          {"tied head with scale and softcap",
           [](auto& config, auto&, auto&) {
             config.head_from_embedding = true;
             config.logit_scale = 0.3f;
             config.logit_softcap = 2.0f;
           }},
          {"head bias", [](auto& config, auto&, auto&) { config.head_bias = true; }},
  };
  for (const auto& [name, change] : variants) {
    const test::Case each(name);
    ShardConfig config = config_of({});
    change(config, config.kinds[0], test::attention_of(config.kinds[0]));
    for (const Type type : {Type::f32, Type::q80}) compare(config, type);
  }
}

// A page read from one shard and written to another holds the same.
void test_pages() {
  const ShardConfig config = config_of({});
  const auto first = make(config, Type::f32, kGpu), second = make(config, Type::f32, kGpu);
  run(*first);
  std::vector<uint8_t> page(first->page_bytes()), again(page.size());
  first->read_page(3, page);
  second->write_page(1, page);
  second->read_page(1, again);
  CHECK(page == again);
  CHECK_EQUAL(second->kv_pages(), size_t{1});
  CHECK_THROWS(second->read_page(2, again), std::invalid_argument, "has no content");
  CHECK_THROWS(second->write_page(16, page), std::invalid_argument, "page 16 of a KV cache of 16");
  first->release_pages(4);
  CHECK_EQUAL(first->kv_pages(), size_t{2});  // 0 and 3
  first->release_pages(0);
  CHECK_EQUAL(first->kv_bytes(), size_t{0});
}

void test_refusals() {
  ShardConfig config = config_of({});
  config.kv_type = KvType::q80;
  CHECK_THROWS(make(config, Type::f32, kGpu), DeviceError, "KV cache of type q80");
  config = config_of({});
  config.kinds[0].experts = ExpertsConfig{.count = 4, .used = 2, .expert = {.units = {0, 32}}};
  CHECK_THROWS(make(config, Type::f32, kGpu), DeviceError, "mixtures of experts");
  CHECK_THROWS(make(config_of({}), Type::f32, "vulkan:99"), DeviceError, "no vulkan:99");
  CHECK_THROWS(make(config_of({}), Type::f32, "cuda"), std::invalid_argument, "not a device");
  CHECK_THROWS(parse_vulkan_device("vulkan:"), std::invalid_argument, "not a device");
  CHECK_THROWS(parse_vulkan_device("vulkan:1x"), std::invalid_argument, "not a device");
  CHECK_EQUAL(parse_vulkan_device("vulkan"), size_t{0});
  CHECK_EQUAL(parse_vulkan_device("vulkan:12"), size_t{12});
}

// NaN in a row ends that row, and no other of the batch.
void test_not_finite() {
  const auto shard = make(config_of({}), Type::q80, kGpu);
  std::vector<float> x(3 * 64, 0.1f), logits(3 * 37);
  x[64] = std::nanf("");
  const std::vector<uint32_t> pages[] = {{0}, {1}, {2}};
  std::vector<SequenceStep> sequences;
  for (const auto& each : pages) sequences.push_back({1, 0, each});
  const std::vector<uint32_t> output_rows = {0, 1, 2};
  std::vector<NotFinite> found;
  shard->step(x, sequences, output_rows, logits.data(), nullptr, &found);
  CHECK_EQUAL(found.size(), size_t{1});
  if (!found.empty()) CHECK_EQUAL(found[0].row, 1u);
}

}  // namespace

int main() {
  if (list_devices().empty()) {
    std::fprintf(stderr, "no Vulkan driver, or a build without Vulkan: nothing was tested\n");
    return 77;
  }
  test_types();
  test_kv_types();
  test_odd_shapes();
  test_variants();
  test_pages();
  test_refusals();
  test_not_finite();
  return test::finish();
}
