// Shards on a GPU against shards on the CPU, of the same weights: all weight types, KV types, odd
// shapes, and every operation that a block may have. Needs a driver; lavapipe (Mesa's
// driver that computes on the CPU) serves. Exit code 77: there is none.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
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
#include "vulkan/pacing.h"

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
  config.max_sequences = 2;
  return config;
}

void set_variable(const char* name, const char* value) {
#ifdef _WIN32
  _putenv_s(name, value);
#else
  setenv(name, value, 1);
#endif
}

bool is_vector(const std::string& name, const SliceShape& shape) {
  // The gate of a feed-forward beside experts is a matrix of one row.
  return shape.first == 1 && name.find("ffn_gate") == std::string::npos;
}

// Routers are floats, as in all files: quantized, a difference of rounding could choose another
// expert.
Type type_of(const std::string& name, Type type) {
  return name.find("router") != std::string::npos ? Type::f32 : type;
}

// The first row many times, each up to two units in the last place more or less.
void make_rows_alike(size_t rows, size_t columns, float* numbers) {
  for (size_t r = 1; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) {
      const int units = static_cast<int>((r * 31 + c * 17) % 5) - 2;
      numbers[r * columns + c] = numbers[c] * (1.0f + 1.2e-7f * static_cast<float>(units));
    }
  }
}

std::unique_ptr<Shard> make(const ShardConfig& config, Type type, const std::string& device,
                            bool routers_alike = false) {
  auto shard = std::make_unique<Shard>(config, 2, std::vector<int>{}, device);
  for (const auto& [name, shape] : shard->expected()) {
    const uint64_t seed = std::hash<std::string>{}(name);
    const auto [rows, columns] = shape;
    if (is_vector(name, shape)) {
      // Around one, as norms are; biases may be as large. Decays are negative.
      const bool decay = name.find("decay_rate") != std::string::npos;
      std::vector<float> numbers(columns);
      random_rows(Type::f32, {seed, 0, 1, 0, columns, 0.3f},
                  reinterpret_cast<uint8_t*>(numbers.data()));
      for (float& number : numbers) number = decay ? -0.5f : number + 1.0f;
      shard->load(name, Type::f32,
                  {reinterpret_cast<const uint8_t*>(numbers.data()), columns * sizeof(float)});
      continue;
    }
    const Type its = type_of(name, type);
    std::vector<uint8_t> bytes(rows * row_bytes(its, columns));
    random_rows(its, {seed, 0, rows, 0, columns, 0.15f}, bytes.data());
    if (routers_alike && name.find("router") != std::string::npos)
      make_rows_alike(rows, columns, reinterpret_cast<float*>(bytes.data()));
    shard->load(name, its, bytes);
  }
  return shard;
}

struct Output {
  std::vector<float> x, logits;
};

// A prompt of kRows - 2 rows beside another sequence, then one row each: page borders are crossed.
std::vector<Output> run(Shard& shard, Lane* lane = nullptr) {
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
    shard.step(out.x, sequences, output_rows, out.logits.data(), lane);
    outputs.push_back(std::move(out));
  };
  step({{kRows - 2, 0, first_pages, 0}, {2, 0, second_pages, 1}}, {kRows - 3, kRows - 1});
  step({{1, kRows - 2, first_pages, 0}, {1, 2, second_pages, 1}}, {0, 1});
  step({{1, kRows - 1, first_pages, 0}}, {0});
  return outputs;
}

// Sums on the GPU have another order. Of floats the difference is rounding. A quantized activation
// can become the next number of its scale, a 127th of the block's largest, as between the CPU's
// instruction sets (test_shard.cpp).
double bound(Type type) { return is_quantized(type) ? 0.02 : 2e-4; }

void check_near(const std::vector<float>& got, const std::vector<float>& expected, double bound) {
  CHECK_EQUAL(got.size(), expected.size());
  double largest = 1.0;
  for (const float value : expected)
    largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (size_t i = 0; i < got.size(); ++i) {
    CHECK(std::isfinite(got[i]));
    CHECK_NEAR(got[i], expected[i], bound * largest);
  }
}

void compare(const ShardConfig& config, Type type, double allowed) {
  const auto cpu = make(config, type, "cpu");
  const auto gpu = make(config, type, kGpu);
  const std::vector<Output> expected = run(*cpu), got = run(*gpu);
  for (size_t s = 0; s < expected.size(); ++s) {
    const test::Case each("step ", s);
    check_near(got[s].x, expected[s].x, allowed);
    check_near(got[s].logits, expected[s].logits, allowed);
  }
  CHECK_EQUAL(gpu->kv_pages(), cpu->kv_pages());
  CHECK_EQUAL(gpu->kv_bytes(), cpu->kv_bytes());
}

void compare(const ShardConfig& config, Type type) { compare(config, type, bound(type)); }

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
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q80}) {
    const test::Case each("KV type ", static_cast<int>(type));
    ShardConfig config = config_of({});
    config.kv_type = type;
    // A number that rounding takes to the next code of its block differs as an activation does.
    compare(config, Type::f32, bound(type == KvType::q80 ? Type::q80 : Type::f32));
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

ShardConfig with_experts(const std::function<void(BlockConfig&, ExpertsConfig&)>& change,
                         size_t units, size_t hidden = 64) {
  ShardConfig config = config_of({.hidden = hidden, .heads = hidden / 16});
  BlockConfig& block = config.kinds[0];
  block.feed_forward.units = {};
  block.experts = ExpertsConfig{.count = 6, .used = 2, .expert = {.units = {0, units}}};
  if (change) change(block, *block.experts);
  return config;
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
          {"norms of whole rows",
           [](auto&, auto&, auto& attention) {
             attention.row_norm = RowNormConfig{.heads = 4, .kv_heads = 2};
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
          {"inputs of layers",
           [](auto& config, auto& block, auto&) {
             config.layer_inputs = LayerInputsConfig{.size = 32,
                                                     .layers = 2,
                                                     .activation = Activation::gelu_tanh,
                                                     .embedding_scale = 1.3f,
                                                     .projection_scale = 0.4f,
                                                     .sum_scale = 0.7f};
             block.layer_scale = true;
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

// Experts, of every kind that models have.
void test_experts() {
  const std::pair<const char*, std::function<void(BlockConfig&, ExpertsConfig&)>> variants[] = {
      {"softmax", [](auto&, auto&) {}},
      {"not normalized", [](auto&, auto& experts) { experts.normalize = false; }},
      {"one of one", [](auto&, auto& experts) { experts.count = experts.used = 1; }},
      {"all", [](auto&, auto& experts) { experts.used = experts.count; }},
      {"more than threads", [](auto&, auto& experts) { experts.count = 300, experts.used = 5; }},
      {"sigmoid, groups, a bias of the choice",
       [](auto&, auto& experts) {
         experts.count = 12;
         experts.groups = 4;
         experts.used_groups = 2;
         experts.scores = RouterScores::sigmoid;
         experts.choice_bias = true;
         experts.scale = 2.5f;
       }},
      {"biases, a clamp",
       [](auto&, auto& experts) {
         experts.router_bias = experts.expert.bias = experts.expert.output_bias = true;
         experts.expert.clamp = GateClamp{.limit = 0.5f, .factor = 1.7f, .offset = 1.0f};
       }},
      {"scales, not gated",
       [](auto&, auto& experts) {
         experts.expert_scales = true;
         experts.expert.gated = false;
         experts.expert.activation = Activation::gelu;
       }},
      {"beside a feed-forward", [](auto& block, auto&) { block.feed_forward.units = {0, 96}; }},
      {"beside a gated feed-forward",
       [](auto& block, auto&) {
         block.feed_forward.units = {0, 96};
         block.feed_forward_gate = true;
       }},
      {"norms of their own", [](auto& block, auto&) {
         block.feed_forward.units = {0, 96};
         block.separate_norms = block.output_norms = true;
       }}};
  for (const auto& [name, change] : variants) {
    const test::Case each(name);
    for (const Type type : {Type::f32, Type::q40}) {
      compare(with_experts(change, 32), type);
    }
  }
  for (const Type type : {Type::f32, Type::f16, Type::bf16}) compare(with_experts({}, 7), type);
  for (const TypeInfo& info : kTypeInfos) {
    const test::Case each(info.name);
    if (info.block <= 32) compare(with_experts({}, 32), info.type);
    if (info.block > 32) compare(with_experts({}, 256, 256), info.type);
  }
}

LatentAttentionConfig latent_mixer(size_t heads, size_t query_rank, size_t kv_rank,
                                   size_t nope_size, size_t rope_size, size_t value_size) {
  return {.heads = {0, heads},
          .query_rank = query_rank,
          .kv_rank = kv_rank,
          .nope_size = nope_size,
          .rope_size = rope_size,
          .value_size = value_size,
          .scale = 0.1f,
          .rope = 0};
}

void test_latent_attention() {
  for (const LatentAttentionConfig& mixer :
       {latent_mixer(4, 32, 64, 32, 32, 32), latent_mixer(3, 0, 32, 64, 32, 96),
        latent_mixer(5, 7, 9, 5, 6, 3), latent_mixer(2, 0, 150, 33, 10, 40)}) {
    const test::Case each("rank ", mixer.kv_rank);
    ShardConfig config = config_of({});
    config.ropes[0].frequencies.resize(mixer.rope_size / 2);
    config.kinds[0].mixer = mixer;
    compare(config, Type::f32);
    compare(config, Type::bf16);
    if (mixer.kv_rank % kBlock != 0) continue;
    compare(config, Type::q80);
    config.kv_type = KvType::q80;
    compare(config, Type::q40);
  }
}

GatedDeltaConfig& recurrent(ShardConfig& config) {
  // The first layer recurrent, the second of attention.
  config.kinds.push_back(config.kinds[0]);
  config.kinds[0].mixer = GatedDeltaConfig{
      .key_heads = {0, 4}, .group = 2, .tile = 2, .key_size = 16, .value_size = 32, .width = 4};
  config.kind_of_layer = {0, 1};
  return std::get<GatedDeltaConfig>(config.kinds[0].mixer);
}

void test_gated_delta() {
  struct Sizes {
    size_t heads, group, tile, key, value, width;
  };
  const Sizes sizes[] = {{4, 2, 2, 16, 32, 4},
                         {2, 1, 1, 128, 64, 4},
                         {3, 2, 3, 7, 45, 3},
                         {1, 3, 1, 1, 1, 1},
                         {2, 2, 1, 9, 33, 13}};
  for (const Sizes& size : sizes) {
    const test::Case each("key size ", size.key);
    ShardConfig config = config_of({});
    recurrent(config) = {.key_heads = {0, size.heads},
                         .group = size.group,
                         .tile = size.tile,
                         .key_size = size.key,
                         .value_size = size.value,
                         .width = size.width};
    compare(config, Type::f32);
    if (size.heads * size.group * size.value % kBlock == 0) compare(config, Type::q80);
  }
}

// A state that is copied, or read and written elsewhere, goes on as the first; one after another
// number of positions is refused.
void test_states() {
  ShardConfig config = config_of({});
  recurrent(config);
  const auto first = make(config, Type::f32, kGpu), second = make(config, Type::f32, kGpu),
             cpu = make(config, Type::f32, "cpu");
  const std::vector<uint32_t> pages = {3, 0, 7};
  const auto next = [&](Shard& shard, size_t rows, size_t position, uint32_t slot) {
    std::vector<float> x(rows * config.hidden_size), logits(config.vocab.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i + position));
    const std::vector<SequenceStep> sequences = {{rows, position, pages, slot}};
    const std::vector<uint32_t> output_rows = {static_cast<uint32_t>(rows - 1)};
    shard.step(x, sequences, output_rows, logits.data(), nullptr);
    return logits;
  };
  next(*first, 5, 0, 0);
  next(*cpu, 5, 0, 0);
  std::vector<uint8_t> state(first->state_bytes()), of_cpu(cpu->state_bytes());
  CHECK_EQUAL(state.size(), of_cpu.size());
  first->read_state(0, 5, state);
  cpu->read_state(0, 5, of_cpu);
  const auto floats = [](const std::vector<uint8_t>& bytes) {
    std::vector<float> numbers(bytes.size() / sizeof(float));
    std::memcpy(numbers.data(), bytes.data(), bytes.size());
    return numbers;
  };
  check_near(floats(state), floats(of_cpu), bound(Type::f32));
  first->copy_state(0, 1, 5);
  std::vector<uint8_t> page(first->page_bytes());
  for (const uint32_t number : {3, 0}) {
    first->read_page(number, page);
    second->write_page(number, page);
  }
  second->write_state(1, 5, state);
  const std::vector<float> expected = next(*first, 1, 5, 0);
  CHECK(next(*first, 1, 5, 1) == expected);
  CHECK(next(*second, 1, 5, 1) == expected);
  CHECK_EQUAL(first->kv_bytes(), 2 * first->page_bytes() + 2 * first->state_bytes());
  CHECK_THROWS(next(*first, 1, 5, 1), std::invalid_argument, "the state after 6 positions");
  CHECK_THROWS(next(*second, 1, 1, 0), std::invalid_argument, "no state");
  CHECK_THROWS(first->copy_state(0, 2, 6), std::invalid_argument, "slot 2 of 2");
  CHECK_THROWS(first->read_state(1, 5, state), std::invalid_argument, "does not hold the state");
  state.pop_back();
  CHECK_THROWS(first->write_state(1, 5, state), std::invalid_argument, "bytes for a state");
  // A sequence that starts finds nothing of the slot's last one.
  const std::vector<float> afresh = next(*cpu, 5, 0, 0);
  check_near(next(*first, 5, 0, 1), afresh, bound(Type::f32));
  first->release_pages(0);
  CHECK_EQUAL(first->kv_bytes(), size_t{0});
}

// Sums of another rank's parts: the first shard's are recorded, and the second gets the same.
class SameSums : public Lane {
 public:
  void all_reduce(float* x, size_t rows, size_t columns, bool) override {
    const std::vector<float> own(x, x + rows * columns);
    if (recording) return sums_.push_back(own);
    const std::vector<float>& sum = sums_.at(next_++);
    check_near(own, sum, bound(Type::f32));
    std::copy(sum.begin(), sum.end(), x);
  }
  bool recording = true;

 private:
  std::vector<std::vector<float>> sums_;
  size_t next_ = 0;
};

// Ranks choose the same experts, though their sums differ in the last bits: router rows are the
// same but for a few of these, so that nothing else decides. The residual stream is the same to the
// bit. Sums that are given would hide another choice, were they not compared with the rank's own.
void test_ranks_choose_the_same_experts() {
  for (const bool separate : {false, true}) {
    const test::Case each("separate norms ", separate);
    const ShardConfig config = with_experts(
        [&](BlockConfig& block, ExpertsConfig& experts) {
          experts.count = 24;
          experts.used = 3;
          block.output_norms = true;
          block.residual_scale = 0.7f;
          block.layer_scale = true;
          if (!separate) return;
          block.feed_forward.units = {0, 96};
          block.separate_norms = true;
        },
        32);
    const auto cpu = make(config, Type::f32, "cpu", true),
               gpu = make(config, Type::f32, kGpu, true);
    SameSums lane;
    const std::vector<Output> expected = run(*cpu, &lane);
    lane.recording = false;
    const std::vector<Output> got = run(*gpu, &lane);
    for (size_t s = 0; s < expected.size(); ++s) CHECK(got[s].x == expected[s].x);
  }
}

// The last row's logits of a sequence that comes in these pieces.
std::vector<float> run_pieces(Shard& shard, const std::vector<size_t>& pieces) {
  const ShardConfig& config = shard.config();
  std::vector<uint32_t> pages(config.max_pages);
  for (size_t p = 0; p < pages.size(); ++p)
    pages[p] = static_cast<uint32_t>((7 * p + 3) % pages.size());
  std::vector<float> last(config.vocab.size());
  size_t position = 0;
  for (const size_t rows : pieces) {
    std::vector<float> x(rows * config.row_size());
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = std::sin(static_cast<float>(position * config.row_size() + i));
    const std::vector<SequenceStep> sequences = {{rows, position, pages}};
    const std::vector<uint32_t> output_rows = {static_cast<uint32_t>(rows - 1)};
    shard.step(x, sequences, output_rows, last.data(), nullptr);
    position += rows;
  }
  return last;
}

// A row's result has the same bits whether its prompt comes at once or in pieces: drafts are
// checked in steps of another shape than the text was written in.
void test_steps_of_any_shape() {
  ShardConfig experts = with_experts({}, 32), latent = config_of({}), delta = config_of({});
  latent.kinds[0].mixer = latent_mixer(4, 32, 64, 32, 32, 32);
  recurrent(delta);
  for (const ShardConfig& config : {config_of({}), experts, latent, delta}) {
    const auto shard = make(config, Type::q40, kGpu);
    CHECK(run_pieces(*shard, {7, 3, 1, 1}) == run_pieces(*shard, {12}));
  }
}

// The same with more positions than a chunk has: those of single rows are divided among workgroups.
void test_long_contexts() {
  const std::pair<size_t, bool> variants[] = {{0, false}, {550, true}};
  for (const auto& [window, sinks] : variants) {
    const test::Case each("window ", window);
    ShardConfig config = config_of({.hidden = 32, .heads = 1, .kv_heads = 1, .head_size = 16});
    config.page_size = 48;
    config.max_step_tokens = 600;
    test::attention_of(config.kinds[0]).window = window;
    test::attention_of(config.kinds[0]).sinks = sinks;
    const auto gpu = make(config, Type::f32, kGpu), cpu = make(config, Type::f32, "cpu");
    const std::vector<float> got = run_pieces(*gpu, {600});
    check_near(got, run_pieces(*cpu, {600}), bound(Type::f32));
    CHECK(run_pieces(*gpu, {500, 11, 60, 23, 5, 1}) == got);
  }
}

// Nothing depends on what a GPU may lack: integers are exact.
void test_plain() {
  for (const TypeInfo& info : kTypeInfos) {
    if (!is_quantized(info.type)) continue;
    const test::Case each(info.name);
    // Products of attention, and grouped ones of experts.
    const ShardConfig config = with_experts({}, 256, 256);
    std::vector<Output> outputs[2];
    for (const bool plain : {false, true}) {
      set_variable("HEARTH_VULKAN", plain ? "plain" : "");
      outputs[plain] = run(*make(config, info.type, kGpu));
    }
    for (size_t s = 0; s < outputs[0].size(); ++s) {
      CHECK(outputs[0][s].x == outputs[1][s].x);
      CHECK(outputs[0][s].logits == outputs[1][s].logits);
    }
  }
  set_variable("HEARTH_VULKAN", "");
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
  CHECK_THROWS(make(config_of({.hidden = 64, .head_size = 1026}), Type::f32, kGpu), DeviceError,
               "heads of 1026, at most 1024");
  CHECK_THROWS(
      make(with_experts([](auto&, auto& experts) { experts.count = 1025; }, 32), Type::f32, kGpu),
      DeviceError, "experts of 1025, at most 1024");
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

// A device that does a million multiply-adds a second, and one that does a billion.
void test_pacing() {
  vulkan::Pacing slow;
  const double first = slow.most_work();
  // Uncut and quick, or cut as fits: recorded once.
  CHECK(!slow.ran(1e6, 0.1, first, false, 0.1));
  CHECK(!slow.ran(8e6, 0.5, first, true, 0.3));
  CHECK_EQUAL(slow.most_work(), first);
  vulkan::Pacing fast;
  CHECK(fast.ran(1e9, 1.0, first, true, 0.01));
  CHECK_NEAR(fast.most_work(), 0.3e9, 1.0);
  CHECK(!fast.ran(1e9, 1.0, fast.most_work(), true, 0.3));
  // It has become ten times slower.
  const double before = fast.most_work();
  CHECK(fast.ran(1e9, 10.0, before, true, 3.0));
  CHECK_NEAR(fast.most_work(), 0.03e9, 1.0);
  // One operation may be longer than it should: it is not cut again and again.
  CHECK(!slow.ran(1e6, 10.0, first, true, 9.0));
}

}  // namespace

int main() {
  test_pacing();
  if (list_devices().empty()) {
    std::fprintf(stderr, "no Vulkan driver, or a build without Vulkan: nothing was tested\n");
    return 77;
  }
  test_types();
  test_kv_types();
  test_odd_shapes();
  test_variants();
  test_experts();
  test_ranks_choose_the_same_experts();
  test_latent_attention();
  test_gated_delta();
  test_states();
  test_steps_of_any_shape();
  test_long_contexts();
  test_plain();
  test_pages();
  test_refusals();
  test_not_finite();
  return test::finish();
}
