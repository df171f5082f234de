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
// The upper half of a product.
uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t low = (a & 0xffffffff) * (b & 0xffffffff);
  const uint64_t first = (a >> 32) * (b & 0xffffffff) + (low >> 32);
  const uint64_t second = (a & 0xffffffff) * (b >> 32) + (first & 0xffffffff);
  return (a >> 32) * (b >> 32) + (first >> 32) + (second >> 32);
}

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
    CHECK_EQUAL(sampler.sample(Logits{-kInfinity, -2.0f, -kInfinity}), 1u);
    CHECK_EQUAL(sampler.sample(Logits{3.4e38f, -3.4e38f}), 0u);
    CHECK_EQUAL(sampler.sample(Logits{std::numeric_limits<float>::max(), 0.0f}), 0u);
    // Damaged numbers are errors, never unlikely tokens.
    for (float bad : {kNan, -kNan, kInfinity}) {
      CHECK_THROWS(sampler.sample(Logits{bad, -2.0f, 1.0f}), std::runtime_error, "not a number");
      Logits row(100, 1.0f);
      row[63] = bad;
      CHECK_THROWS(sampler.sample(row), std::runtime_error, "not a number");
    }
    CHECK_THROWS(sampler.sample(Logits{-kInfinity, -kInfinity}), std::runtime_error, "-inf");
    CHECK_THROWS(sampler.sample(Logits{}), std::runtime_error, "no token");
    CHECK_THROWS(sampler.sample(Logits(size_t{1} << 19, 0.0f)), std::invalid_argument, "524288");
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

// The draw by its definition: all tokens sorted, weights as whole numbers, the shortest prefix that
// reaches top-p, then the token at a random place in the order of ids. `Sampler` must agree always.
uint32_t sorted_draw(const SamplerConfig& config, const Logits& logits, std::mt19937_64& random) {
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  const float best = logits[order[0]];
  if (config.top_k > 0) order.resize(std::min<size_t>(order.size(), config.top_k));
  const float least =
      best +
      config.temperature * std::max(-30.0f, config.min_p > 0.0f ? std::log(config.min_p) : -30.0f);
  std::erase_if(order, [&](uint32_t i) { return !(logits[i] >= least); });
  const auto weight = [&](uint32_t i) {
    return weight_of((logits[i] - best) / config.temperature);
  };
  uint64_t total = 0;
  for (uint32_t i : order) total += weight(i);
  if (config.top_p < 1.0f) {
    const auto wanted = std::min(
        total, static_cast<uint64_t>(std::ceil(static_cast<double>(total) * config.top_p)));
    size_t kept = 0;
    for (total = 0; total < wanted;) total += weight(order[kept++]);
    order.resize(kept);
  }
  std::sort(order.begin(), order.end());
  auto left = multiply_high(random(), total);
  for (uint32_t i : order) {
    if (left < weight(i)) return i;
    left -= weight(i);
  }
  throw std::logic_error("a draw outside");
}

void test_draw_is_the_sorted_one() {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (size_t size : {1, 2, 15, 16, 17, 255, 256, 257, 1000, 5000}) {
    for (int kind = 0; kind < 4; ++kind) {
      Logits logits(size);
      for (float& each : logits) {
        each = normal(random);
        if (kind == 1) each = std::round(each);  // many ties
        if (kind == 2) each = random() % 3 == 0 ? -kInfinity : each * 20.0f;
        if (kind == 3) each = 1.0f;  // all the same
      }
      logits[random() % size] = 9.0f;
      for (float top_p : {1.0f, 0.95f, 0.5f, 1e-4f, 0.999999f}) {
        for (uint32_t top_k : {0u, 1u, 7u, 400u}) {
          for (float min_p : {0.0f, 0.05f}) {
            const uint64_t seed = random();
            const SamplerConfig config = {
                .temperature = 0.8f, .top_k = top_k, .top_p = top_p, .min_p = min_p, .seed = seed};
            Sampler sampler(config);
            std::mt19937_64 twin(seed);
            for (int i = 0; i < 4; ++i)
              CHECK_EQUAL(sampler.sample(logits), sorted_draw(config, logits, twin));
          }
        }
      }
    }
  }
}

// Whole numbers instead of the library's exponential: relative error of one weight under 2^-22, and
// below 2^-20 of the best at most one unit of 2^-44.
void test_weights() {
  CHECK_EQUAL(weight_of(0.0f), kWeightOne);
  CHECK_EQUAL(weight_of(-30.001f), uint64_t{0});
  CHECK_EQUAL(weight_of(-kInfinity), uint64_t{0});
  for (int i = 0; i < 30000; ++i) {
    const float x = -0.001f * static_cast<float>(i);
    const double exact = std::exp(static_cast<double>(x)) * static_cast<double>(kWeightOne);
    CHECK_NEAR(static_cast<double>(weight_of(x)), exact, exact * 0x1p-22 + 1.0);
  }
}

// A vocabulary of 2,000 against probabilities in double: neither top-p nor the order of a draw
// prefers any token. Bound: as in check_distribution.
void test_distribution_of_a_row() {
  std::mt19937 random(21);
  std::normal_distribution<float> normal(0.0f, 1.5f);
  Logits logits(2000);
  for (float& each : logits) each = normal(random);
  std::vector<double> p;
  double total = 0.0;
  for (float each : logits) p.push_back(std::exp(static_cast<double>(each) / 0.8));
  for (double each : p) total += each;
  for (double& each : p) each /= total;
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  for (float top_p : {1.0f, 0.9f}) {
    std::vector<double> expected(p.size(), 0.0);
    double kept = 0.0;
    for (size_t i = 0; i < order.size() && kept < static_cast<double>(top_p); ++i)
      kept += expected[order[i]] = p[order[i]];
    for (double& each : expected) each /= kept;
    check_distribution({.temperature = 0.8f, .top_p = top_p, .seed = 31}, logits, expected);
  }
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

void test_masked_logits() {
  std::mt19937 random(6);
  for (const size_t size : {size_t{0}, size_t{1}, size_t{31}, size_t{300}}) {
    Logits logits(size), made(size);
    for (float& each : logits) each = static_cast<float>(random() % 9) - 4.0f;
    for (const size_t first : {size_t{0}, size_t{3}, size_t{16}, size_t{61}}) {
      // As many bytes as are needed; some allow all of their tokens, some none.
      std::vector<uint8_t> allowed((first + size + 7) / 8);
      for (uint8_t& each : allowed) {
        const auto kind = random() % 3;
        each = static_cast<uint8_t>(kind == 0 ? 0 : kind == 1 ? 0xff : random());
      }
      masked_logits(logits, allowed.data(), first, -kInfinity, made.data());
      for (size_t i = 0; i < size; ++i) {
        const bool may = (allowed[(first + i) / 8] >> ((first + i) % 8) & 1) != 0;
        CHECK_EQUAL(made[i], may ? logits[i] : -kInfinity);
      }
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
  test_draw_is_the_sorted_one();
  test_weights();
  test_distribution_of_a_row();
  test_seeds();
  test_repetition_penalty();
  test_candidates();
  test_candidates_of_rows();
  test_masked_logits();
  test_limits();
  return test::finish();
}
