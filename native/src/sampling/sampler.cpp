#include "hearth/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "hearth/finite.h"
#include "sampling/gumbel.h"
#include "sampling/nucleus.h"
#include "sampling/order.h"

namespace hearth {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
// e^x below this is never drawn: a whole vocabulary of such tokens has a chance under 1e-7.
constexpr float kFloor = -30.0f;
// With fewer logits all weights together are less than 2^63.
constexpr size_t kMaxLogits = size_t{1} << 19;
void check(bool good, const char* name, double value, const char* range) {
  if (!good) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", not in " +
                                range);
  }
}

// NaN or +inf, but not -inf, which is a token that must not be drawn.
bool any_invalid(std::span<const float> x) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t found = 0;
  for (const float each : x) {
    const uint32_t bits = std::bit_cast<uint32_t>(each);
    // As unsigned numbers: +inf and positive NaN follow all finite ones, negative NaN follow -inf.
    found |= static_cast<uint32_t>((bits & 0x7fffffffu) + (1 - (bits >> 31)) > kInfinity);
  }
  return found != 0;
}

// e^x for x in [-30, 0], by the polynomial of the Cephes library after x = n ln 2 + r. Without
// library calls or fused operations: the same bits on every machine.
inline float exp_of(float x) {
  x = x > kFloor ? x : kFloor;
  // Rounds to the nearest whole number: the sum has no room for a fraction.
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  const float n = (x * 1.44269504088896341f + kRound) - kRound;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

uint64_t whole(float weight) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * static_cast<float>(kWeightOne)));
}

// The `count` best of the tokens of a row, in any order. ids: their tokens; empty: all of the row.
// Each token counts once, with its highest logit: a rank may send one twice, as one of the best and
// as one that a draw may choose. It also fills up with the lowest logit.
std::vector<Candidate> candidates_of(std::span<const float> logits, std::span<const uint32_t> ids,
                                     size_t count) {
  std::vector<Candidate> found;
  if (ids.empty() && count <= kNucleusTokens) {  // a heap is faster than to move them all
    std::vector<float> values(count);
    std::vector<uint32_t> tokens(count);
    best_candidates(logits, count, 0, values.data(), tokens.data());
    for (size_t i = 0; i < count; ++i) found.push_back({values[i], tokens[i]});
    return found;
  }
  found.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    found[i] = {logits[i], ids.empty() ? static_cast<uint32_t>(i) : ids[i]};
  if (!ids.empty()) {
    std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
      return a.second != b.second ? a.second < b.second : a.first > b.first;
    });
    const auto same = [](const Candidate& a, const Candidate& b) { return a.second == b.second; };
    found.erase(std::unique(found.begin(), found.end(), same), found.end());
  }
  if (count < found.size()) {
    std::nth_element(found.begin(), found.begin() + static_cast<long>(count - 1), found.end(),
                     better);
    found.resize(count);
  }
  return found;
}

}  // namespace

void SamplerConfig::validate() const {
  check(temperature >= 0.0f && temperature <= 100.0f, "temperature", temperature, "[0, 100]");
  check(top_p > 0.0f && top_p <= 1.0f, "top_p", top_p, "(0, 1]");
  check(min_p >= 0.0f && min_p <= 1.0f, "min_p", min_p, "[0, 1]");
  check(repetition_penalty > 0.0f && repetition_penalty <= 10.0f, "repetition_penalty",
        repetition_penalty, "(0, 10]");
}

uint64_t weight_of(float exponent) { return exponent < kFloor ? 0 : whole(exp_of(exponent)); }

Sampler::Sampler(const SamplerConfig& config) : config_((config.validate(), config)) {}

// The logits with penalties: only those of tokens seen are looked at.
std::span<const float> Sampler::penalize(std::span<const float> logits,
                                         std::span<const uint32_t> ids) {
  if (config_.repetition_penalty == 1.0f || seen_.empty()) return logits;
  thread_local std::vector<float> row;
  row.assign(logits.begin(), logits.end());
  const auto apply = [&](float& logit) {
    if (logit > 0.0f)
      logit /= config_.repetition_penalty;
    else
      logit *= config_.repetition_penalty;
  };
  if (ids.empty()) {
    for (const uint32_t token : seen_) {
      if (token < row.size()) apply(row[token]);
    }
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (seen_.contains(ids[i])) apply(row[i]);
  }
  return row;
}

uint32_t Sampler::sample(std::span<const float> logits, std::span<const uint32_t> ids,
                         std::span<const LogitCounts> tails) {
  if (!ids.empty() && ids.size() != logits.size())
    throw std::invalid_argument("candidates need an id for each logit");
  if (logits.size() >= kMaxLogits) {
    throw std::invalid_argument(std::to_string(logits.size()) + " logits, fewer than " +
                                std::to_string(kMaxLogits) + " can be sampled");
  }
  if (any_invalid(logits))
    throw std::runtime_error("no token can be sampled: a logit is not a number, or infinite");
  const std::span<const float> row = penalize(logits, ids);
  const float best = largest(row);
  if (best == kImpossible) throw std::runtime_error("no token can be sampled: every logit is -inf");
  if (config_.temperature > 0.0f) {
    const Draw next = next_draw();
    ++draws_;
    if (best < std::numeric_limits<float>::max()) return draw(row, ids, tails, next, best);
  }
  uint32_t token = std::numeric_limits<uint32_t>::max();
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] == best) token = std::min(token, ids.empty() ? static_cast<uint32_t>(i) : ids[i]);
  }
  return token;
}

uint32_t Sampler::draw(std::span<const float> logits, std::span<const uint32_t> ids,
                       std::span<const LogitCounts> tails, const Draw& draw, float best) const {
  const Scores scores(draw);
  Chosen chosen;
  // (Leaves out -inf.)
  float least = std::numeric_limits<float>::lowest();
  const float temperature = config_.temperature, top_p = config_.top_p;
  if (config_.min_p > 0.0f) least = std::max(least, best + temperature * std::log(config_.min_p));
  const auto draw_from = [&](std::span<const Candidate> tokens) {
    for (const auto& [logit, token] : tokens) scores.look(logit, token, least, chosen);
    return chosen.token;
  };
  const auto draw_from_row = [&] {
    for (size_t i = 0; i < logits.size(); ++i)
      scores.look(logits[i], ids.empty() ? static_cast<uint32_t>(i) : ids[i], least, chosen);
    return chosen.token;
  };
  const size_t top_k = config_.top_k;
  const bool limited = top_k > 0 && top_k < logits.size();
  if (!limited && top_p == 1.0f) return draw_from_row();

  std::vector<uint32_t> counts;
  LogitCounts own{best, {}};
  const auto count = [&](std::span<const float> row) {
    counts.resize(kLogitSteps);
    count_logits(row, best, temperature, counts.data());
    own.counts = counts;
    tails = {&own, 1};
  };
  if (!limited && ids.empty()) {
    count(logits);
    const std::vector<Candidate> few = nucleus_tokens(logits, own, temperature);
    const Nucleus nucleus = find_nucleus(few, tails, temperature, top_p, least);
    if (nucleus.best > 0) return draw_from(std::span(few).first(nucleus.best));
    least = std::max(least, nucleus.least);
    return draw_from_row();
  }

  // The tokens that top-k keeps.
  std::vector<Candidate> kept = candidates_of(logits, ids, limited ? top_k : logits.size());
  if (top_p == 1.0f) return draw_from(kept);
  const size_t few = std::min(kept.size(), kNucleusTokens);
  std::partial_sort(kept.begin(), kept.begin() + static_cast<long>(few), kept.end(), better);
  if (tails.empty() && few < kept.size()) {
    std::vector<float> values;
    for (const auto& [logit, token] : kept) values.push_back(logit);
    count(values);
  }
  const Nucleus nucleus =
      find_nucleus(std::span(kept).first(few), tails, temperature, top_p, least);
  if (nucleus.best > 0) return draw_from(std::span(kept).first(nucleus.best));
  least = std::max(least, nucleus.least);
  return draw_from(kept);
}

}  // namespace hearth
