#include "hearth/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "hearth/finite.h"

namespace hearth {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();
// e^x below this is never drawn: a whole vocabulary of such tokens has a chance under 1e-7.
constexpr float kFloor = -30.0f;
// With fewer logits all weights together are less than 2^63.
constexpr size_t kMaxLogits = size_t{1} << 19;
// Logits that a loop takes at once, so that compilers use vectors.
constexpr size_t kAtOnce = 16;
// Tokens up to which a heap finds the best of a row faster than a partial sort.
constexpr size_t kFew = 256;
// Logits whose weights are added up apart, for a draw to step over.
constexpr size_t kBlock = 256;

void check(bool good, const char* name, double value, const char* range) {
  if (!good) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", not in " +
                                range);
  }
}

// Better first; equal logits by the lower id, so that the choice never depends on the sort.
bool better(const std::pair<float, uint32_t>& a, const std::pair<float, uint32_t>& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

bool any_above(const float* logits, size_t count, float least) {
  int found = 0;
  for (size_t i = 0; i < count; ++i) found |= logits[i] > least;
  return found != 0;
}

float largest(std::span<const float> x) {
  std::array<float, kAtOnce> top;
  top.fill(kImpossible);
  size_t i = 0;
  for (; i + kAtOnce <= x.size(); i += kAtOnce) {
    for (size_t j = 0; j < kAtOnce; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
  }
  for (; i < x.size(); ++i) top[0] = x[i] > top[0] ? x[i] : top[0];
  return *std::max_element(top.begin(), top.end());
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

// floor(a * b / 2^64)
uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32);
  return a1 * b1 + (middle >> 32) + (((middle & 0xffffffffu) + a0 * b1) >> 32);
}

// The least weight of a nucleus, and of its tokens with just that weight the last place in the row.
struct Edge {
  float weight;
  size_t place;
};

// The edge of the fewest best tokens whose weights add up to this part of all; `kept`: what they
// add up to. Tokens are first counted by the leading bits of their weights: only those of the
// bucket in which the edge lies are sorted.
Edge nucleus(std::span<const float> weights, float part, uint64_t& kept) {
  constexpr uint32_t kShift = 17;  // 6 bits of the mantissa
  constexpr uint32_t kFirst = std::bit_cast<uint32_t>(0x1p-45f) >> kShift;
  constexpr uint32_t kLast = std::bit_cast<uint32_t>(2.0f) >> kShift;
  const auto bucket_of = [](float weight) {
    return (std::bit_cast<uint32_t>(weight) >> kShift) - kFirst;
  };
  // By turns into one of two: neighbours often meet in a bucket, and would wait for each other.
  constexpr size_t kBuckets = kLast - kFirst + 1;
  std::array<std::array<uint64_t, kBuckets>, 2> halves{};
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0.0f) halves[i % 2][bucket_of(weights[i])] += whole(weights[i]);
  }
  std::array<uint64_t, kBuckets>& sums = halves[0];
  for (size_t i = 0; i < kBuckets; ++i) sums[i] += halves[1][i];
  const uint64_t total = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  const auto wanted = std::min(total, static_cast<uint64_t>(std::ceil(static_cast<double>(total) *
                                                                      static_cast<double>(part))));
  kept = 0;
  size_t bucket = sums.size() - 1;
  while (bucket > 0 && kept + sums[bucket] < wanted) kept += sums[bucket--];
  std::vector<std::pair<float, uint32_t>> members;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0.0f && bucket_of(weights[i]) == bucket)
      members.push_back({weights[i], static_cast<uint32_t>(i)});
  }
  std::sort(members.begin(), members.end(), better);
  Edge edge = {std::numeric_limits<float>::max(), 0};
  for (const auto& [weight, place] : members) {
    edge = {weight, place};
    kept += whole(weight);
    if (kept >= wanted) break;
  }
  return edge;
}

// Reused: memory of this size would come from the system, page by page, for every token.
std::vector<float>& scratch(size_t size) {
  thread_local std::vector<float> memory;
  memory.resize(size);
  return memory;
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

Sampler::Sampler(const SamplerConfig& config)
    : config_((config.validate(), config)), random_(config.seed) {}

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

uint32_t Sampler::sample(std::span<const float> logits, std::span<const uint32_t> ids) {
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
  if (config_.temperature > 0.0f && best < std::numeric_limits<float>::max())
    return draw(row, ids, best);
  uint32_t token = std::numeric_limits<uint32_t>::max();
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] == best) token = std::min(token, ids.empty() ? static_cast<uint32_t>(i) : ids[i]);
  }
  return token;
}

uint32_t Sampler::draw(std::span<const float> logits, std::span<const uint32_t> ids, float best) {
  // Places in the order of ids: what is drawn must not depend on the order of candidates.
  std::vector<std::pair<uint32_t, float>> ordered;
  const float least =
      best + config_.temperature *
                 std::max(kFloor, config_.min_p > 0.0f ? std::log(config_.min_p) : kFloor);
  const size_t top_k = config_.top_k;
  const bool chosen = top_k > 0 && top_k < logits.size();
  if (chosen || !ids.empty()) {
    std::vector<std::pair<float, uint32_t>> candidates;
    if (ids.empty() && top_k <= kFew) {
      std::vector<float> values(top_k);
      std::vector<uint32_t> tokens(top_k);
      best_candidates(logits, top_k, 0, values.data(), tokens.data());
      for (size_t i = 0; i < top_k; ++i) candidates.push_back({values[i], tokens[i]});
    } else {
      for (size_t i = 0; i < logits.size(); ++i)
        candidates.push_back({logits[i], ids.empty() ? static_cast<uint32_t>(i) : ids[i]});
      if (chosen) {
        std::nth_element(candidates.begin(), candidates.begin() + static_cast<long>(top_k - 1),
                         candidates.end(), better);
        candidates.resize(top_k);
      }
    }
    for (const auto& [logit, token] : candidates) {
      if (logit >= least) ordered.push_back({token, logit});
    }
    std::sort(ordered.begin(), ordered.end());
  }
  const bool all = ordered.empty();
  const size_t count = all ? logits.size() : ordered.size();
  std::vector<float>& weights = scratch((count + kAtOnce - 1) / kAtOnce * kAtOnce);
  for (size_t i = 0; i < count; ++i) weights[i] = all ? logits[i] : ordered[i].second;
  std::fill(weights.begin() + static_cast<long>(count), weights.end(), kImpossible);
  const float temperature = config_.temperature;
  for (float& weight : weights) {
    const float e = exp_of((weight - best) / temperature);
    weight = weight >= least ? e : 0.0f;
  }

  const auto token_at = [&](size_t i) { return all ? static_cast<uint32_t>(i) : ordered[i].first; };
  // (The best has a weight of one, so that the total is never 0.)
  if (config_.top_p == 1.0f) {
    uint64_t total = 0;
    std::vector<uint64_t> sums;
    for (size_t i = 0; i < count; i += kBlock) {
      uint64_t sum = 0;
      for (size_t j = i; j < std::min(count, i + kBlock); ++j) sum += whole(weights[j]);
      sums.push_back(sum);
      total += sum;
    }
    uint64_t left = multiply_high(random_(), total);
    size_t block = 0;
    while (left >= sums[block]) left -= sums[block++];
    size_t i = block * kBlock;
    for (; left >= whole(weights[i]); ++i) left -= whole(weights[i]);
    return token_at(i);
  }
  uint64_t kept = 0;
  const Edge edge = nucleus({weights.data(), count}, config_.top_p, kept);
  uint64_t left = multiply_high(random_(), kept);
  for (size_t i = 0; i < count; ++i) {
    if (weights[i] < edge.weight || (weights[i] == edge.weight && i > edge.place)) continue;
    const uint64_t weight = whole(weights[i]);
    if (left < weight) return token_at(i);
    left -= weight;
  }
  throw std::logic_error("a draw outside the nucleus");
}

void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids) {
  if (count == 0 || count > logits.size()) {
    throw std::invalid_argument(std::to_string(count) + " candidates of " +
                                std::to_string(logits.size()) + " logits");
  }
  // A heap of the best so far, the worst of them on top: most of a row is turned away by one look,
  // and that at so many logits at once. (Of equal ones the first is better.)
  constexpr size_t kLookAhead = 64;
  std::vector<std::pair<float, uint32_t>> kept;
  kept.reserve(count);
  for (size_t i = 0; i < logits.size(); ++i) {
    while (kept.size() == count && i + kLookAhead <= logits.size() &&
           !any_above(&logits[i], kLookAhead, kept.front().first))
      i += kLookAhead;
    if (i == logits.size()) break;
    const float logit = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    const std::pair candidate{logit, first_id + static_cast<uint32_t>(i)};
    if (kept.size() == count) {
      if (!better(candidate, kept.front())) continue;
      std::pop_heap(kept.begin(), kept.end(), better);
      kept.pop_back();
    }
    kept.push_back(candidate);
    std::push_heap(kept.begin(), kept.end(), better);
  }
  std::sort(kept.begin(), kept.end(), better);
  for (size_t i = 0; i < count; ++i) {
    best[i] = kept[i].first;
    ids[i] = kept[i].second;
  }
}

void masked_logits(std::span<const float> logits, const uint8_t* allowed, size_t first_id,
                   float value, float* out) {
  for (size_t i = 0; i < logits.size();) {
    const size_t id = first_id + i, bit = id % 8;
    const size_t count = std::min(8 - bit, logits.size() - i);
    const unsigned bits = static_cast<unsigned>(allowed[id / 8]) >> bit;
    // Most bytes allow all of their tokens, or none.
    if (bits == 0) {
      std::fill_n(out + i, count, value);
    } else if (bits == 0xff) {
      std::copy_n(logits.data() + i, count, out + i);
    } else {
      for (size_t j = 0; j < count; ++j) out[i + j] = (bits >> j & 1) != 0 ? logits[i + j] : value;
    }
    i += count;
  }
}

}  // namespace hearth
