// The gated delta rule: its kernels against the definition; and in a shard the same bits on any
// number of threads, with the prompt cut anywhere, and beside other sequences. The tests in Python
// compare it with an independent reference.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "configs.h"
#include "hearth/cpu.h"
#include "hearth/kernels.h"
#include "hearth/quant.h"
#include "hearth/shard.h"

using namespace hearth;

namespace {

constexpr float kUntouched = -12345.0f;
constexpr size_t kHidden = 32;

std::vector<float> random_floats(size_t count, float deviation) {
  static std::mt19937 generator(7);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& each : x) each = normal(generator);
  return x;
}

struct DeltaCase {
  size_t tokens, key_size, value_size;
  std::vector<float> state, queries, keys, values, decay, beta;

  DeltaCase(size_t count, size_t key, size_t value)
      : tokens(count),
        key_size(key),
        value_size(value),
        state(random_floats(key * value, 1.0f)),
        queries(random_floats(count * key, 0.3f)),
        keys(random_floats(count * key, 0.3f)),
        values(random_floats(count * value, 1.0f)),
        decay(random_floats(count, 1.0f)),
        beta(random_floats(count, 1.0f)) {
    for (float& each : decay) each = 1.0f / (1.0f + each * each);
    for (float& each : beta) each = 1.0f / (1.0f + each * each);
  }

  // The results, and the state after them.
  std::vector<float> run(const Kernels& kernels) const {
    std::vector<float> after = state, out(tokens * value_size + 1, kUntouched);
    kernels.delta_rule({.state = after.data(),
                        .queries = queries.data(),
                        .keys = keys.data(),
                        .values = values.data(),
                        .decay = decay.data(),
                        .beta = beta.data(),
                        .tokens = tokens,
                        .key_size = key_size,
                        .value_size = value_size,
                        .out = out.data()});
    CHECK_EQUAL(out.back(), kUntouched);
    out.pop_back();
    out.insert(out.end(), after.begin(), after.end());
    return out;
  }

  // In double, and with the state as a whole.
  std::vector<double> definition() const {
    std::vector<double> after(state.begin(), state.end()), out;
    for (size_t t = 0; t < tokens; ++t) {
      std::vector<double> delta(value_size), made(value_size);
      for (double& each : after) each *= static_cast<double>(decay[t]);
      for (size_t v = 0; v < value_size; ++v) {
        double held = 0.0;
        for (size_t k = 0; k < key_size; ++k)
          held += static_cast<double>(keys[t * key_size + k]) * after[k * value_size + v];
        delta[v] =
            static_cast<double>(beta[t]) * (static_cast<double>(values[t * value_size + v]) - held);
      }
      for (size_t k = 0; k < key_size; ++k) {
        for (size_t v = 0; v < value_size; ++v) {
          double& each = after[k * value_size + v];
          each += static_cast<double>(keys[t * key_size + k]) * delta[v];
          made[v] += static_cast<double>(queries[t * key_size + k]) * each;
        }
      }
      out.insert(out.end(), made.begin(), made.end());
    }
    out.insert(out.end(), after.begin(), after.end());
    return out;
  }
};

void test_kernels() {
  for (size_t key_size : {1, 7, 16}) {
    for (size_t value_size : {1, 5, 8, 31, 32, 40, 75}) {
      const test::Case each("key size ", key_size, ", value size ", value_size);
      const DeltaCase delta(5, key_size, value_size);
      const std::vector<float> expected = delta.run(kScalarKernels);
      const std::vector<double> exact = delta.definition();
      // Each token rounds a few times as many terms as a key has, of magnitudes near 1.
      for (size_t i = 0; i < exact.size(); ++i)
        CHECK_NEAR(expected[i], exact[i], 1e-5 * (1.0 + std::abs(exact[i])));
      for (const auto& name : instruction_sets()) {
        const test::Case with(name);
        CHECK_SAME(delta.run(*find_kernels(name)), expected);
      }
    }
  }
}

// A layer of the gated delta rule, then one of attention.
ShardConfig config() {
  ShardConfig config = test::block_config({.hidden_size = kHidden,
                                           .layers = {0, 2},
                                           .heads = {0, 4},
                                           .kv_heads = {0, 2},
                                           .head_size = 8,
                                           .units = {0, 32}});
  config.kinds.push_back(config.kinds[0]);
  config.kinds[0].mixer = GatedDeltaConfig{
      .key_heads = {0, 4}, .group = 2, .tile = 2, .key_size = 8, .value_size = 32, .width = 4};
  config.kind_of_layer = {0, 1};
  config.max_sequences = 2;
  config.max_undo = 8;
  config.max_step_tokens = 40;
  return config;
}

std::unique_ptr<Shard> make(Type type, size_t threads) {
  auto shard = std::make_unique<Shard>(config(), threads);
  for (const auto& [name, shape] : shard->expected()) {
    const auto [rows, columns] = shape;
    const Type its = rows == 1 ? Type::f32 : type;
    std::vector<uint8_t> bytes(rows * row_bytes(its, columns));
    random_rows(its, {std::hash<std::string>{}(name), 0, rows, 0, columns, 0.3f}, bytes.data());
    shard->load(name, its, bytes);
  }
  return shard;
}

void test_invariance() {
  constexpr size_t kRows = 21;
  const std::vector<float> prompt = random_floats(kRows * kHidden, 1.0f);
  const std::vector<float> other = random_floats(3 * kHidden, 1.0f);
  const std::vector<uint32_t> pages = {3, 0, 7, 8, 9, 2}, others = {1};
  for (Type type : {Type::f32, Type::q80}) {
    const test::Case each(type_name(type));
    std::vector<float> expected = prompt;
    make(type, 1)->step(expected, {{{kRows, 0, pages, 1}}}, {}, nullptr, nullptr);
    for (float value : expected) CHECK(std::isfinite(value));
    for (size_t threads : {2, 3, 8}) {
      const auto shard = make(type, threads);
      for (size_t cut : {size_t{1}, size_t{3}, size_t{17}, size_t{20}}) {
        const test::Case at(threads, " threads, cut at ", cut);
        std::vector<float> got(prompt.begin(),
                               prompt.begin() + static_cast<std::ptrdiff_t>(cut * kHidden));
        shard->step(got, {{{cut, 0, pages, 1}}}, {}, nullptr, nullptr);
        std::vector<float> rest = other;
        rest.insert(rest.end(), prompt.begin() + static_cast<std::ptrdiff_t>(cut * kHidden),
                    prompt.end());
        const std::vector<SequenceStep> both = {{3, 0, others, 0}, {kRows - cut, cut, pages, 1}};
        shard->step(rest, both, {}, nullptr, nullptr);
        got.insert(got.end(), rest.begin() + 3 * kHidden, rest.end());
        CHECK_SAME(got, expected);
      }
    }
  }
}

// Rows that are taken back leave no trace, however many of them the next step keeps.
void test_undo() {
  constexpr size_t kRows = 21, kWrong = 3;
  const std::vector<float> prompt = random_floats(kRows * kHidden, 1.0f);
  const std::vector<float> wrong = random_floats(kWrong * kHidden, 1.0f);
  const std::vector<uint32_t> pages = {3, 0, 7, 8, 9, 2};
  std::vector<float> expected = prompt;
  make(Type::f32, 1)->step(expected, {{{kRows, 0, pages, 1}}}, {}, nullptr, nullptr);
  for (size_t threads : {1, 3}) {
    for (size_t kept : {size_t{0}, size_t{1}, size_t{4}}) {
      const test::Case each(threads, " threads, ", kept, " of 4 drafts kept");
      const auto shard = make(Type::f32, threads);
      // Of each step the last rows may be taken back: 4 right ones, then 3 others.
      for (size_t begin = 0; begin + 5 <= kRows; begin += 1 + kept) {
        std::vector<float> x(prompt.begin() + static_cast<std::ptrdiff_t>(begin * kHidden),
                             prompt.begin() + static_cast<std::ptrdiff_t>((begin + 5) * kHidden));
        x.insert(x.end(), wrong.begin(), wrong.end());
        shard->step(x, {{{5 + kWrong, begin, pages, 1, 4 + kWrong}}}, {}, nullptr, nullptr);
        x.resize(5 * kHidden);
        CHECK_SAME(x, std::vector<float>(
                          expected.begin() + static_cast<std::ptrdiff_t>(begin * kHidden),
                          expected.begin() + static_cast<std::ptrdiff_t>((begin + 5) * kHidden)));
      }
    }
  }
}

}  // namespace

int main() {
  test_kernels();
  test_invariance();
  test_undo();
  return test::finish();
}
