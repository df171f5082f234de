// The sampler: who can be drawn under each setting, how often, and what it makes of odd logits.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "hearth/sampler.h"
#include "sampling/nucleus.h"

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
  constexpr int kCount = 50000;
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

// The tokens of a nucleus by the definition in the header. order: all tokens that top-k keeps,
// sorted. least: the logit below which min-p drops tokens.
std::vector<uint32_t> sorted_nucleus(const SamplerConfig& config, const Logits& logits,
                                     std::vector<uint32_t> order, float least) {
  const float best = logits[order[0]];
  const double per_step = std::log(2.0) / kLogitStepsPerOctave;
  const auto scaled = [&](float logit) {
    return static_cast<double>(logit) / (per_step * static_cast<double>(config.temperature));
  };
  const auto step = [&](uint32_t i) { return std::nearbyint(scaled(logits[i])); };
  const size_t few = std::min(order.size(), kNucleusTokens);
  std::vector<std::pair<uint64_t, double>> weights;
  for (size_t i = 0; i < order.size(); ++i) {
    const double below = i < few
                             ? static_cast<double>((logits[order[i]] - best) / config.temperature)
                             : (step(order[i]) - scaled(best)) * per_step;
    const bool dropped = i < few ? logits[order[i]] < least
                                 : logits[order[few - 1]] < least ||
                                       step(order[i]) < std::nearbyint(scaled(least)) ||
                                       step(order[0]) - step(order[i]) >= kLogitSteps;
    weights.push_back(
        {dropped ? 0 : weight_of(std::min(0.0f, static_cast<float>(below))), step(order[i])});
  }
  uint64_t total = 0, sum = 0;
  for (const auto& [weight, of] : weights) total += weight;
  const auto wanted =
      std::min(total, static_cast<uint64_t>(std::ceil(static_cast<double>(total) *
                                                      static_cast<double>(config.top_p))));
  size_t kept = 0;
  while (sum < wanted) sum += weights[kept++].first;
  if (kept > few) {
    while (kept < order.size() && weights[kept].second == weights[kept - 1].second) ++kept;
  }
  order.resize(kept);
  return order;
}

// The draw by its definition: all tokens sorted, those that are kept, and of these the token with
// the highest logit / temperature + noise. `Sampler` must agree always.
uint32_t sorted_draw(const SamplerConfig& config, const Logits& logits, uint64_t number) {
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  if (config.top_k > 0) order.resize(std::min<size_t>(order.size(), config.top_k));
  float least = std::numeric_limits<float>::lowest();
  if (config.min_p > 0.0f) least = logits[order[0]] + config.temperature * std::log(config.min_p);
  if (config.top_p < 1.0f) order = sorted_nucleus(config, logits, order, least);
  std::erase_if(order, [&](uint32_t i) { return logits[i] < least; });
  std::sort(order.begin(), order.end());
  const auto score = [&](uint32_t i) {
    return static_cast<double>(logits[i]) * (1.0 / static_cast<double>(config.temperature)) +
           gumbel_noise(config.seed, number, i);
  };
  return *std::max_element(order.begin(), order.end(),
                           [&](uint32_t a, uint32_t b) { return score(a) < score(b); });
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
            for (uint64_t i = 0; i < 4; ++i)
              CHECK_EQUAL(sampler.sample(logits), sorted_draw(config, logits, i));
          }
        }
      }
    }
  }
}

// Against the library's logarithms: the distribution's mean and variance, and its tails, from which
// the winners of large rows come. Bounds: five standard errors of 400,000 draws, and of the count
// above a level.
void test_noise() {
  constexpr int kCount = 400000;
  double sum = 0.0, squares = 0.0, least = 0.0, most = 0.0;
  std::map<int, double> above;
  for (int i = 0; i < kCount; ++i) {
    const double x = gumbel_noise(7, static_cast<uint64_t>(i / 1000), static_cast<uint32_t>(i));
    sum += x;
    squares += x * x;
    least = std::min(least, x);
    most = std::max(most, x);
    for (int level : {-1, 0, 2, 5, 8}) above[level] += x > level;
  }
  const double mean = sum / kCount, variance = squares / kCount - mean * mean;
  CHECK_NEAR(mean, 0.57721566, 5.0 * std::sqrt(1.6449 / kCount));
  // (The fourth central moment is 5.4 times the squared variance.)
  CHECK_NEAR(variance, 1.64493407, 5.0 * 1.6449 * std::sqrt(4.4 / kCount));
  for (const auto& [level, count] : above) {
    const double expected = kCount * -std::expm1(-std::exp(-static_cast<double>(level)));
    CHECK_NEAR(count, expected, 5.0 * std::sqrt(expected));
  }
  CHECK(least > -4.0 && most < 37.0);
  // Neighbours of every kind differ.
  CHECK(gumbel_noise(1, 2, 3) != gumbel_noise(1, 3, 2));
  CHECK(gumbel_noise(1, 2, 3) != gumbel_noise(2, 2, 3));
  CHECK(gumbel_noise(1, 2, 3) != gumbel_noise(1, 2, 4));
}

// What every rank sends of its part of a row says what the whole row says: one token without min-p,
// and a few with.
void test_drawn_candidates() {
  std::mt19937 random(14);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  constexpr size_t kSize = 4000;
  constexpr size_t kCuts[] = {0, 700, 701 + 63, kSize};
  for (int kind = 0; kind < 3; ++kind) {
    Logits logits(kSize);
    for (float& each : logits) {
      each = normal(random);
      if (kind == 1) each = std::round(each);  // many ties
      if (kind == 2 && random() % 2 == 0) each = -kInfinity;
    }
    logits[random() % kSize] = 1.0f;
    for (float min_p : {0.0f, 0.001f, 0.1f, 1.0f}) {
      const SamplerConfig config = {.temperature = 0.7f, .min_p = min_p, .seed = random()};
      const size_t count = min_p > 0.0f ? 63 : 1;
      Sampler whole(config), parts(config);
      std::set<uint32_t> tokens;
      for (int draws = 0; draws < 100; ++draws) {
        Logits merged(3 * count);
        std::vector<uint32_t> ids(3 * count);
        for (size_t rank = 0; rank < 3; ++rank) {
          const std::span part(logits.begin() + kCuts[rank], logits.begin() + kCuts[rank + 1]);
          drawn_candidates(part, parts.next_draw(), count, static_cast<uint32_t>(kCuts[rank]),
                           &merged[rank * count], &ids[rank * count]);
        }
        const uint32_t token = whole.sample(logits);
        CHECK_EQUAL(parts.sample(merged, ids), token);
        tokens.insert(token);
      }
      CHECK(tokens.size() > (min_p == 1.0f ? 0 : 5));
    }
  }
  std::vector<float> best(3);
  std::vector<uint32_t> ids(3);
  // Nothing but what cannot be drawn; then fewer than are asked for.
  drawn_candidates(Logits{kNan, -kInfinity, -kInfinity}, {}, 3, 5, best.data(), ids.data());
  CHECK((best == std::vector<float>(3, -std::numeric_limits<float>::max())));
  CHECK((ids == std::vector<uint32_t>(3, 5)));
  drawn_candidates(Logits{kNan, 2.0f, -kInfinity}, {}, 3, 5, best.data(), ids.data());
  CHECK((ids == std::vector<uint32_t>{6, 5, 5}));
  for (float bad : {0.0f, -1.0f, 101.0f, kNan})
    CHECK_THROWS(
        drawn_candidates(Logits{1.0f}, {.temperature = bad}, 1, 0, best.data(), ids.data()),
        std::invalid_argument, "temperature");
  CHECK_THROWS(drawn_candidates(Logits{1.0f}, {}, 2, 0, best.data(), ids.data()),
               std::invalid_argument, "2 candidates of 1 logits");
}

// Parts of a row that ranks hold give the token of the whole row, whatever is kept.
void test_nucleus_candidates() {
  std::mt19937 random(15);
  constexpr size_t kCount = kNucleusTokens + 64;
  for (int kind = 0; kind < 5; ++kind) {
    const size_t size = kind == 4 ? 900 : 6000;
    std::normal_distribution<float> normal(0.0f, kind == 3 ? 4.0f : 1.0f);
    Logits logits(size);
    for (float& each : logits) {
      each = normal(random);
      if (kind == 1) each = std::round(each);  // many ties
      if (kind == 2 && random() % 2 == 0) each = std::numeric_limits<float>::lowest();
    }
    if (kind == 4) logits.back() = 40.0f;  // the other ranks' tokens are far below
    for (int round = 0; round < 12; ++round) {
      // Ranks of any size: with all that they have, with little, with nothing near the best.
      size_t cuts[] = {0, 1 + random() % (size - 1), 1 + random() % (size - 1), size};
      std::sort(std::begin(cuts), std::end(cuts));
      for (const float top_p : {0.3f, 0.95f, 0.9999f}) {
        for (const float min_p : {0.0f, 0.02f}) {
          const SamplerConfig config = {
              .temperature = 0.8f, .top_p = top_p, .min_p = min_p, .seed = random()};
          Sampler whole(config), parts(config);
          for (int draws = 0; draws < 5; ++draws) {
            Logits merged;
            std::vector<uint32_t> ids;
            std::vector<std::vector<uint32_t>> counts;
            std::vector<LogitCounts> tails;
            for (size_t rank = 0; rank < 3; ++rank) {
              const size_t columns = cuts[rank + 1] - cuts[rank];
              if (columns == 0) continue;
              const size_t count = std::min(kCount, columns), at = merged.size();
              merged.resize(at + count);
              ids.resize(at + count);
              counts.emplace_back(kLogitSteps);
              nucleus_candidates({&logits[cuts[rank]], columns}, parts.next_draw(), count,
                                 static_cast<uint32_t>(cuts[rank]), &merged[at], &ids[at],
                                 counts.back().data());
              tails.push_back({merged[at], counts.back()});
            }
            CHECK_EQUAL(parts.sample(merged, ids, tails), whole.sample(logits));
          }
        }
      }
    }
  }
  std::vector<float> best(300);
  std::vector<uint32_t> ids(300), counts(kLogitSteps);
  CHECK_THROWS(nucleus_candidates(Logits(300), {.temperature = 0.0f}, 300, 0, best.data(),
                                  ids.data(), counts.data()),
               std::invalid_argument, "temperature");
  CHECK_THROWS(nucleus_candidates(Logits(300), {}, kNucleusTokens, 0, best.data(), ids.data(),
                                  counts.data()),
               std::invalid_argument, "256 candidates of a nucleus");
  nucleus_candidates(Logits(300, kNan), {}, 300, 0, best.data(), ids.data(), counts.data());
  CHECK(std::accumulate(counts.begin(), counts.end(), 0u) == 0);
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
  for (const float spread : {1.5f, 3.0f}) {
    std::normal_distribution<float> normal(0.0f, spread);
    Logits logits(2000);
    for (float& each : logits) each = normal(random);
    std::vector<uint32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    for (const float top_p : {1.0f, 0.9f}) {
      const SamplerConfig config = {.temperature = 0.8f, .top_p = top_p, .seed = 31};
      const auto nucleus = top_p < 1.0f ? sorted_nucleus(config, logits, order, -100.0f) : order;
      // One of each kind: within the best tokens, and one that ends with a step.
      CHECK(top_p == 1.0f || (nucleus.size() <= kNucleusTokens) == (spread == 3.0f));
      std::vector<double> expected(logits.size(), 0.0);
      double total = 0.0;
      for (const uint32_t i : nucleus)
        total += expected[i] = std::exp(static_cast<double>(logits[i]) / 0.8);
      for (double& each : expected) each /= total;
      check_distribution(config, logits, expected);
    }
  }
}

// The mass of a nucleus in double. The tokens behind the best 256 weigh as much as the middle of
// their step, which is half of 2^(1/16) off at most, a factor of 1.0219: so the sum of all is off
// by 2.2 % of the mass behind the 256, and so is what is kept of it. 1e-6 is for weights of floats.
void test_mass_of_a_nucleus() {
  std::mt19937 random(22);
  for (const float spread : {0.0f, 0.3f, 1.0f, 2.0f, 4.0f}) {
    std::normal_distribution<float> normal(0.0f, spread);
    for (const size_t size : {size_t{200}, size_t{3000}, size_t{30000}}) {
      Logits logits(size);
      for (float& each : logits) each = normal(random);
      std::vector<Candidate> best(std::min(size, kNucleusTokens));
      std::vector<uint32_t> counts(kLogitSteps);
      const float temperature = 0.9f;
      std::sort(logits.begin(), logits.end(), std::greater<>());
      for (uint32_t i = 0; i < best.size(); ++i) best[i] = {logits[i], i};
      count_logits(logits, logits[0], temperature, counts.data());
      const LogitCounts tail{logits[0], counts};
      std::vector<double> sums = {0.0};  // of the first i tokens
      for (const float each : logits)
        sums.push_back(sums.back() + std::exp(static_cast<double>(each - logits[0]) / temperature));
      const double total = sums.back(), behind = (total - sums[best.size()]) / total;
      for (const float top_p : {0.1f, 0.5f, 0.9f, 0.95f, 0.99f}) {
        const Nucleus nucleus = find_nucleus(best, {&tail, 1}, temperature, top_p, -1e30f);
        size_t kept = nucleus.best;
        if (kept == 0) {
          const auto out =
              std::upper_bound(logits.begin(), logits.end(), nucleus.least, std::greater<>());
          kept = static_cast<size_t>(out - logits.begin());
        }
        const double slack = 0.044 * behind + 1e-6, p = static_cast<double>(top_p);
        CHECK(sums[kept] / total >= p - slack);
        // Without the last token, or the last step, it would be too little.
        size_t less = kept - 1;
        if (nucleus.best == 0) {
          const double step = 2.0 / kLogitStepsPerOctave * std::log(2.0) * 0.5;
          const float above = nucleus.least + static_cast<float>(step * 1.0001) * temperature;
          less = static_cast<size_t>(
              std::upper_bound(logits.begin(), logits.end(), above, std::greater<>()) -
              logits.begin());
        }
        CHECK(sums[less] / total < p + slack);
      }
    }
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
  test_noise();
  test_weights();
  test_distribution_of_a_row();
  test_mass_of_a_nucleus();
  test_nucleus_candidates();
  test_seeds();
  test_repetition_penalty();
  test_candidates();
  test_drawn_candidates();
  test_candidates_of_rows();
  test_masked_logits();
  test_limits();
  return test::finish();
}
