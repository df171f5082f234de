#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "hearth/sampler.h"
#include "sampling/gumbel.h"
#include "sampling/nucleus.h"
#include "sampling/order.h"

namespace hearth {
namespace {

bool any_above(const float* logits, size_t count, float least) {
  int found = 0;
  for (size_t i = 0; i < count; ++i) found |= logits[i] > least;
  return found != 0;
}

void check_count(size_t count, size_t logits) {
  if (count == 0 || count > logits) {
    throw std::invalid_argument(std::to_string(count) + " candidates of " + std::to_string(logits) +
                                " logits");
  }
}

void check_temperature(const Draw& draw) {
  if (!(draw.temperature > 0.0f && draw.temperature <= 100.0f)) {
    throw std::invalid_argument("temperature of a draw is " + std::to_string(draw.temperature) +
                                ", not in (0, 100]");
  }
}

}  // namespace

void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids) {
  check_count(count, logits.size());
  // A heap of the best so far, the worst of them on top: most of a row is turned away by one look,
  // and that at so many logits at once. (Of equal ones the first is better.)
  constexpr size_t kLookAhead = 64;
  std::vector<Candidate> kept;
  kept.reserve(count);
  for (size_t i = 0; i < logits.size(); ++i) {
    while (kept.size() == count && i + kLookAhead <= logits.size() &&
           !any_above(&logits[i], kLookAhead, kept.front().first))
      i += kLookAhead;
    if (i == logits.size()) break;
    const float logit = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    const Candidate candidate{logit, first_id + static_cast<uint32_t>(i)};
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

void drawn_candidates(std::span<const float> logits, const Draw& draw, size_t count,
                      uint32_t first_id, float* best, uint32_t* ids) {
  check_count(count, logits.size());
  check_temperature(draw);
  std::fill_n(best, count, std::numeric_limits<float>::lowest());
  std::fill_n(ids, count, first_id);
  const Scores scores(draw);
  // (Neither -inf nor NaN.)
  float least = std::numeric_limits<float>::lowest();
  Chosen chosen;
  for (size_t i = 0; i < logits.size(); ++i)
    scores.look(logits[i], first_id + static_cast<uint32_t>(i), least, chosen);
  std::vector<uint32_t> likelier;
  for (size_t found = 0; chosen.token != Chosen::kNone; ++found) {
    const float logit = best[found] = chosen.logit;
    ids[found] = chosen.token;
    if (found + 1 == count) return;
    // (Without a branch, which would often be guessed wrongly.)
    size_t left = 0;
    if (found == 0) {
      likelier.resize(logits.size());
      for (size_t i = 0; i < logits.size(); ++i) {
        likelier[left] = static_cast<uint32_t>(i);
        left += logits[i] > logit;
      }
    } else {
      for (const uint32_t i : likelier) {
        likelier[left] = i;
        left += logits[i] > logit;
      }
    }
    likelier.resize(left);
    chosen = {};
    for (const uint32_t i : likelier) scores.look(logits[i], first_id + i, least, chosen);
  }
}

void nucleus_candidates(std::span<const float> logits, const Draw& draw, size_t count,
                        uint32_t first_id, float* best, uint32_t* ids, uint32_t* counts) {
  check_count(count, logits.size());
  check_temperature(draw);
  const float highest = largest(logits);
  count_logits(logits, highest, draw.temperature, counts);
  if (count == logits.size()) return best_candidates(logits, count, first_id, best, ids);
  if (count <= kNucleusTokens) {
    throw std::invalid_argument(std::to_string(count) + " candidates of a nucleus, which has " +
                                std::to_string(kNucleusTokens));
  }
  drawn_candidates(logits, draw, count - kNucleusTokens, first_id, best + kNucleusTokens,
                   ids + kNucleusTokens);
  std::fill_n(best, kNucleusTokens, std::numeric_limits<float>::lowest());
  std::fill_n(ids, kNucleusTokens, first_id);
  const LogitCounts counted{highest, {counts, kLogitSteps}};
  size_t i = 0;
  for (const auto& [logit, token] : nucleus_tokens(logits, counted, draw.temperature)) {
    best[i] = logit;
    ids[i++] = first_id + token;
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
