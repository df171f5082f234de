#include "hearth/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace hearth {
namespace {

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

}  // namespace

void SamplerConfig::validate() const {
  check(temperature >= 0.0f && temperature <= 100.0f, "temperature", temperature, "[0, 100]");
  check(top_p > 0.0f && top_p <= 1.0f, "top_p", top_p, "(0, 1]");
  check(min_p >= 0.0f && min_p <= 1.0f, "min_p", min_p, "[0, 1]");
  check(repetition_penalty > 0.0f && repetition_penalty <= 10.0f, "repetition_penalty",
        repetition_penalty, "(0, 10]");
}

Sampler::Sampler(const SamplerConfig& config)
    : config_((config.validate(), config)), random_(config.seed) {}

float Sampler::penalized(float logit, uint32_t token) const {
  if (std::isnan(logit)) return -std::numeric_limits<float>::infinity();
  if (config_.repetition_penalty == 1.0f || !seen_.contains(token)) return logit;
  return logit > 0.0f ? logit / config_.repetition_penalty : logit * config_.repetition_penalty;
}

uint32_t Sampler::sample(std::span<const float> logits, std::span<const uint32_t> ids) {
  constexpr float kImpossible = -std::numeric_limits<float>::infinity();
  if (!ids.empty() && ids.size() != logits.size())
    throw std::invalid_argument("candidates need an id for each logit");
  const auto at = [&](size_t i) {
    const uint32_t token = ids.empty() ? static_cast<uint32_t>(i) : ids[i];
    return std::pair{penalized(logits[i], token), token};
  };
  std::pair<float, uint32_t> best{kImpossible, std::numeric_limits<uint32_t>::max()};
  for (size_t i = 0; i < logits.size(); ++i) {
    if (const auto candidate = at(i); better(candidate, best)) best = candidate;
  }
  if (best.first == kImpossible)
    throw std::runtime_error("no token can be sampled: every logit is -inf or not a number");
  if (config_.temperature == 0.0f || !std::isfinite(best.first)) return best.second;

  // What is too unlikely ever to be drawn is left out before anything is sorted: below e^-30 of the
  // best, a whole vocabulary of such tokens has a chance under 1e-7. min-p raises that floor.
  const float floor_logit =
      best.first + config_.temperature *
                       std::max(-30.0f, config_.min_p > 0.0f ? std::log(config_.min_p) : -30.0f);
  std::vector<std::pair<float, uint32_t>> candidates;  // a megabyte, where all are as likely
  for (size_t i = 0; i < logits.size(); ++i) {
    if (const auto candidate = at(i); candidate.first >= floor_logit)
      candidates.push_back(candidate);
  }
  if (config_.top_k > 0 && config_.top_k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + (config_.top_k - 1), candidates.end(),
                     better);
    candidates.resize(config_.top_k);
  }
  std::sort(candidates.begin(), candidates.end(), better);

  double total = 0.0;
  for (auto& [logit, token] : candidates) {
    logit = std::exp((logit - best.first) / config_.temperature);
    total += logit;
  }
  if (config_.top_p < 1.0f) {
    const double wanted = total * static_cast<double>(config_.top_p);
    double sum = 0.0;
    size_t kept = 0;
    while (kept < candidates.size() && sum < wanted) sum += candidates[kept++].first;
    candidates.resize(std::max<size_t>(kept, 1));
    total = sum;
  }
  // 53 random bits: std::uniform_real_distribution is not the same everywhere, this is.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (const auto& [weight, token] : candidates) {
    left -= weight;
    if (left < 0.0) return token;
  }
  return candidates.back().second;
}

void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids) {
  if (count == 0 || count > logits.size()) {
    throw std::invalid_argument(std::to_string(count) + " candidates of " +
                                std::to_string(logits.size()) + " logits");
  }
  // A heap of the best so far, the worst of them on top: most of a row is turned away by one look,
  // and that at so many logits at once. (Of equal ones the first is better.)
  constexpr size_t kAtOnce = 64;
  std::vector<std::pair<float, uint32_t>> kept;
  kept.reserve(count);
  for (size_t i = 0; i < logits.size(); ++i) {
    while (kept.size() == count && i + kAtOnce <= logits.size() &&
           !any_above(&logits[i], kAtOnce, kept.front().first))
      i += kAtOnce;
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

}  // namespace hearth
