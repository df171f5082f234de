// The sampler: who can be drawn under each setting, how often, and what it makes of odd logits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "hearth/sampler.h"

using namespace hearth;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Logits = std::vector<float>;

std::map<uint32_t, int> draw(const SamplerConfig& config, const Logits& logits, int count) {
  Sampler sampler(config);
  std::map<uint32_t, int> counts;
  for (int i = 0; i < count; ++i) ++counts[sampler.sample(logits)];
  return counts;
}

std::set<uint32_t> drawn(const SamplerConfig& config, const Logits& logits) {
  std::set<uint32_t> tokens;
  for (const auto& [token, count] : draw(config, logits, 3000)) tokens.insert(token);
  return tokens;
}

Logits of_probabilities(const std::vector<double>& probabilities) {
  Logits logits;
  for (double each : probabilities) logits.push_back(static_cast<float>(std::log(each)));
  return logits;
}

using Tokens = std::set<uint32_t>;

void test_greedy() {
  Sampler greedy({});
  CHECK_EQUAL(greedy.sample(Logits{0.0f, 3.0f, -1.0f}), 1u);
  CHECK_EQUAL(greedy.sample(Logits{5.0f, 7.0f, 7.0f, 7.0f}), 1u);  // ties go to the lower id
  CHECK_EQUAL(greedy.sample(Logits{-0.0f, 0.0f}), 0u);
  CHECK_EQUAL(greedy.sample(Logits{-1e38f, -kInfinity}), 0u);
  CHECK_EQUAL(greedy.sample(Logits{42.0f}), 0u);
  // The same however hot, when only one is kept.
  for (float temperature : {0.1f, 1.0f, 100.0f})
    CHECK((drawn({.temperature = temperature, .top_k = 1}, {1.0f, 2.0f, 2.0f}) == Tokens{1}));
}

void test_odd_logits() {
  for (float temperature : {0.0f, 1.0f}) {
    const SamplerConfig config = {.temperature = temperature};
    Sampler sampler(config);
    CHECK_EQUAL(sampler.sample(Logits{kNan, -2.0f, -kInfinity}), 1u);
    CHECK_EQUAL(sampler.sample(Logits{1.0f, kInfinity, 2.0f}), 1u);
    CHECK_EQUAL(sampler.sample(Logits{3.4e38f, -3.4e38f}), 0u);
    CHECK_THROWS(sampler.sample(Logits{-kInfinity, kNan, -kInfinity}), std::runtime_error, "-inf");
    CHECK_THROWS(sampler.sample(Logits{}), std::runtime_error, "no token");
    CHECK_EQUAL(sampler.sample(Logits{-kInfinity, 0.0f}), 1u);  // and goes on after the error
  }
  // The coldest that is not greedy.
  const float cold = std::numeric_limits<float>::denorm_min();
  CHECK((drawn({.temperature = cold}, {1.0f, 2.0f, 1.9999f}) == Tokens{1}));
}

void test_membership() {
  const Logits logits = of_probabilities({0.05, 0.4, 0.1, 0.25, 0.2});
  CHECK((drawn({.temperature = 1.0f}, logits) == Tokens{0, 1, 2, 3, 4}));
  CHECK((drawn({.temperature = 1.0f, .top_k = 2}, logits) == Tokens{1, 3}));
  CHECK((drawn({.temperature = 1.0f, .top_k = 99}, logits) == Tokens{0, 1, 2, 3, 4}));
  // 0.4 + 0.25 reach 0.6; the one that crosses the line is kept.
  CHECK((drawn({.temperature = 1.0f, .top_p = 0.6f}, logits) == Tokens{1, 3}));
  CHECK((drawn({.temperature = 1.0f, .top_p = 0.7f}, logits) == Tokens{1, 3, 4}));
  CHECK((drawn({.temperature = 1.0f, .top_p = 1e-6f}, logits) == Tokens{1}));
  // 0.45 of 0.4 is 0.18.
  CHECK((drawn({.temperature = 1.0f, .min_p = 0.45f}, logits) == Tokens{1, 3, 4}));
  CHECK((drawn({.temperature = 1.0f, .min_p = 1.0f}, logits) == Tokens{1}));
  // Of the best three (of 0.85), 0.4 + 0.25 reach 0.75 * 0.85 = 0.64.
  CHECK((drawn({.temperature = 1.0f, .top_k = 3, .top_p = 0.75f}, logits) == Tokens{1, 3}));
  // Ties at the edge of top-k: the lower ids.
  CHECK((drawn({.temperature = 1.0f, .top_k = 2}, Logits(6, 1.0f)) == Tokens{0, 1}));
  // Far below the best is never drawn, whatever else is off.
  CHECK((drawn({.temperature = 1.0f}, {0.0f, -40.0f}) == Tokens{0}));
}

// Chi-square of the counts. With k - 1 degrees of freedom its mean is k - 1 and its variance
// 2 (k - 1); seven standard deviations are far past any draw, and far below what a wrong
// distribution gives (moving 1% of the mass gives about count / 10,000 per token).
void check_distribution(const SamplerConfig& config, const Logits& logits,
                        const std::vector<double>& expected) {
  constexpr int kCount = 100000;
  auto counts = draw(config, logits, kCount);
  double chi = 0.0;
  size_t kinds = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double mean = expected[i] * kCount;
    if (mean == 0.0) {
      CHECK_EQUAL(counts[static_cast<uint32_t>(i)], 0);
      continue;
    }
    ++kinds;
    const double off = counts[static_cast<uint32_t>(i)] - mean;
    chi += off * off / mean;
  }
  const double freedom = static_cast<double>(kinds) - 1.0;
  CHECK_NEAR(chi, freedom, 7.0 * std::sqrt(2.0 * freedom));
}

void test_distribution() {
  const std::vector<double> p = {0.05, 0.4, 0.1, 0.25, 0.2};
  const Logits logits = of_probabilities(p);
  check_distribution({.temperature = 1.0f, .seed = 1}, logits, p);
  // temperature 1/2: the squares; temperature 2: the roots
  for (double power : {2.0, 0.5}) {
    std::vector<double> expected;
    double total = 0.0;
    for (double each : p) total += std::pow(each, power);
    for (double each : p) expected.push_back(std::pow(each, power) / total);
    check_distribution({.temperature = static_cast<float>(1.0 / power), .seed = 2}, logits,
                       expected);
  }
  check_distribution({.temperature = 1.0f, .top_k = 3, .seed = 3}, logits,
                     {0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85});
  check_distribution({.temperature = 1.0f, .top_p = 0.6f, .seed = 4}, logits,
                     {0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0});
  check_distribution({.temperature = 1.0f, .min_p = 0.45f, .seed = 5}, logits,
                     {0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85});
  // A shift of all logits changes nothing.
  Logits shifted = logits;
  for (float& each : shifted) each += 1000.0f;
  check_distribution({.temperature = 1.0f, .seed = 6}, shifted, p);
}

void test_seeds() {
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  Logits logits(1000);
  for (float& each : logits) each = normal(random);
  const auto text = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1.0f, .top_k = 200, .top_p = 0.95f, .seed = seed});
    std::vector<uint32_t> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler.sample(logits));
    return tokens;
  };
  CHECK(text(1) == text(1));
  CHECK(text(1) != text(2));
  CHECK(text(0) != text(~uint64_t{0}));
}

void test_repetition_penalty() {
  Sampler sampler({.repetition_penalty = 2.0f});
  const Logits logits = {4.0f, 3.0f, -1.0f, -1.5f};
  CHECK_EQUAL(sampler.sample(logits), 0u);
  sampler.accept(0);  // 4 becomes 2
  CHECK_EQUAL(sampler.sample(logits), 1u);
  sampler.accept(1);  // 3 becomes 1.5
  CHECK_EQUAL(sampler.sample(logits), 0u);
  sampler.accept(0);  // counted once
  CHECK_EQUAL(sampler.sample(logits), 0u);
  sampler.accept(2);
  CHECK_EQUAL(sampler.sample(Logits{-kInfinity, -kInfinity, -1.0f, -1.5f}), 3u);  // -1 becomes -2
  sampler.accept(1u << 31);  // a token that these logits do not have
  CHECK_EQUAL(sampler.sample(logits), 0u);
  Sampler off({.repetition_penalty = 1.0f});
  off.accept(0);
  CHECK_EQUAL(off.sample(logits), 0u);
}

// The best of each rank's part of the vocabulary, put together, say what the whole row says.
void test_candidates() {
  std::vector<float> best(3);
  std::vector<uint32_t> ids(3);
  best_candidates(Logits{1.0f, kNan, 7.0f, 7.0f, -kInfinity}, 3, 10, best.data(), ids.data());
  CHECK((best == std::vector<float>{7.0f, 7.0f, 1.0f}));
  CHECK((ids == std::vector<uint32_t>{12, 13, 10}));
  best_candidates(Logits{kNan, -kInfinity, 5.0f}, 3, 0, best.data(), ids.data());
  CHECK((ids == std::vector<uint32_t>{2, 0, 1}));
  CHECK_THROWS(best_candidates(Logits{1.0f}, 2, 0, best.data(), ids.data()), std::invalid_argument,
               "2 candidates of 1 logits");
  CHECK_THROWS(best_candidates(Logits{1.0f}, 0, 0, best.data(), ids.data()), std::invalid_argument,
               "0 candidates");

  std::mt19937 random(4);
  Logits logits(300);
  for (float& each : logits) each = static_cast<float>(random() % 50) * 0.1f;  // many ties
  constexpr uint32_t kKept = 20;
  Logits merged(3 * kKept);
  std::vector<uint32_t> tokens(3 * kKept);
  const uint32_t cuts[] = {0, 37, 180, 300};
  for (size_t rank = 0; rank < 3; ++rank) {
    const std::span part(logits.begin() + cuts[rank], logits.begin() + cuts[rank + 1]);
    best_candidates(part, kKept, cuts[rank], &merged[rank * kKept], &tokens[rank * kKept]);
  }
  for (const SamplerConfig& config :
       {SamplerConfig{}, SamplerConfig{.temperature = 1.0f, .top_k = kKept, .seed = 3},
        SamplerConfig{.temperature = 0.7f, .top_k = 5, .top_p = 0.9f, .seed = 4}}) {
    Sampler whole(config), parts(config);
    for (int i = 0; i < 200; ++i) CHECK_EQUAL(parts.sample(merged, tokens), whole.sample(logits));
  }
  CHECK_THROWS(Sampler({}).sample(merged, std::span(tokens).first(1)), std::invalid_argument,
               "an id for each logit");
}

// Against sorting the whole row: ties, what is no number, and rows of all lengths.
void test_candidates_of_rows() {
  std::mt19937 random(5);
  for (size_t size : {1, 63, 64, 65, 128, 130, 300}) {
    for (size_t count : {size_t{1}, size_t{7}, size_t{64}, size}) {
      if (count > size) continue;
      Logits logits(size);
      for (float& each : logits) each = static_cast<float>(random() % 40);
      logits[random() % size] = kNan;
      logits[random() % size] = -kInfinity;
      std::vector<uint32_t> order(size);
      std::iota(order.begin(), order.end(), 0u);
      const auto value = [&](uint32_t i) { return std::isnan(logits[i]) ? -kInfinity : logits[i]; };
      std::stable_sort(order.begin(), order.end(),
                       [&](uint32_t a, uint32_t b) { return value(a) > value(b); });
      order.resize(count);
      std::vector<float> best(count);
      std::vector<uint32_t> ids(count);
      best_candidates(logits, count, 0, best.data(), ids.data());
      CHECK(ids == order);
      for (size_t i = 0; i < count; ++i) CHECK_EQUAL(best[i], value(order[i]));
    }
  }
}

void test_limits() {
  for (float bad : {-0.1f, 101.0f, kNan, kInfinity})
    CHECK_THROWS(Sampler({.temperature = bad}), std::invalid_argument, "temperature");
  for (float bad : {0.0f, -1.0f, 1.1f, kNan})
    CHECK_THROWS(Sampler({.top_p = bad}), std::invalid_argument, "top_p");
  for (float bad : {-0.1f, 1.1f, kNan})
    CHECK_THROWS(Sampler({.min_p = bad}), std::invalid_argument, "min_p");
  for (float bad : {0.0f, -1.0f, 11.0f, kNan})
    CHECK_THROWS(Sampler({.repetition_penalty = bad}), std::invalid_argument, "repetition_penalty");
}

}  // namespace

int main() {
  test_greedy();
  test_odd_logits();
  test_membership();
  test_distribution();
  test_seeds();
  test_repetition_penalty();
  test_candidates();
  test_candidates_of_rows();
  test_limits();
  return test::finish();
}
