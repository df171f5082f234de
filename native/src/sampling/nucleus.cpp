#include "sampling/nucleus.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace hearth {
namespace {

constexpr double kLn2 = 0.69314718055994531;

// Adding and subtracting this rounds to a whole number; numbers of 2^52 or more are whole anyway.
constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52

double factor_of(float temperature) {
  return kLogitStepsPerOctave / (kLn2 * static_cast<double>(temperature));
}

inline double step_at(float logit, double factor) {
  return (static_cast<double>(logit) * factor + kRound) - kRound;
}

// Place of a step among the counts of a row whose best logit has the step `top`; kLogitSteps for
// one too far below it, and for NaN.
inline int32_t place_of(double top, double step) {
  constexpr double kPast = static_cast<double>(kLogitSteps);
  const double below = top - step;
  const double place = below < kPast ? below : kPast;
  return static_cast<int32_t>(place > 0.0 ? place : 0.0);
}

// The lowest logit of a step that has some, or of a higher one; at most `highest`.
float first_of(double step, float highest, double factor) {
  // By halves, among floats in the order of their values.
  const auto order = [](float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    return bits >= 0 ? int64_t{bits} : int64_t{std::numeric_limits<int32_t>::min()} - bits;
  };
  const auto at = [](int64_t place) {
    return std::bit_cast<float>(static_cast<int32_t>(
        place >= 0 ? place : int64_t{std::numeric_limits<int32_t>::min()} - place));
  };
  int64_t low = order(std::numeric_limits<float>::lowest()), high = order(highest);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (step_at(at(middle), factor) >= step)
      high = middle;
    else
      low = middle + 1;
  }
  return at(high);
}

bool any_from(const float* logits, size_t count, float least) {
  int found = 0;
  for (size_t i = 0; i < count; ++i) found |= logits[i] >= least;
  return found != 0;
}

}  // namespace

void count_logits(std::span<const float> logits, float best, float temperature, uint32_t* counts) {
  const double factor = factor_of(temperature), top = step_at(best, factor);
  // By turns into one of four: neighbours often meet in a step, and would wait for each other.
  constexpr size_t kTurns = 4;
  std::array<std::array<uint32_t, kLogitSteps + 1>, kTurns> turns{};
  constexpr size_t kAtOnce = 64;
  std::array<int32_t, kAtOnce> places;
  size_t i = 0;
  for (; i + kAtOnce <= logits.size(); i += kAtOnce) {
    for (size_t j = 0; j < kAtOnce; ++j) places[j] = place_of(top, step_at(logits[i + j], factor));
    for (size_t j = 0; j < kAtOnce; ++j) ++turns[j % kTurns][static_cast<size_t>(places[j])];
  }
  for (; i < logits.size(); ++i)
    ++turns[0][static_cast<size_t>(place_of(top, step_at(logits[i], factor)))];
  for (size_t place = 0; place < kLogitSteps; ++place) {
    counts[place] = 0;
    for (const auto& turn : turns) counts[place] += turn[place];
  }
}

std::vector<Candidate> nucleus_tokens(std::span<const float> logits, const LogitCounts& counted,
                                      float temperature) {
  size_t place = 0, count = counted.counts[0];
  while (count < kNucleusTokens && place + 1 < kLogitSteps) count += counted.counts[++place];
  const double factor = factor_of(temperature);
  const float least =
      first_of(step_at(counted.best, factor) - static_cast<double>(place), counted.best, factor);
  std::vector<Candidate> found;
  found.reserve(count);
  constexpr size_t kLookAhead = 64;
  for (size_t i = 0; i < logits.size(); i += kLookAhead) {
    const size_t size = std::min(kLookAhead, logits.size() - i);
    if (!any_from(&logits[i], size, least)) continue;
    for (size_t j = i; j < i + size; ++j) {
      if (logits[j] >= least) found.push_back({logits[j], static_cast<uint32_t>(j)});
    }
  }
  const size_t few = std::min(found.size(), kNucleusTokens);
  std::partial_sort(found.begin(), found.begin() + static_cast<long>(few), found.end(), better);
  found.resize(few);
  return found;
}

Nucleus find_nucleus(std::span<const Candidate> best, std::span<const LogitCounts> tails,
                     float temperature, float top_p, float least) {
  const float highest = best.front().first;
  size_t possible = 0;
  while (possible < best.size() && best[possible].first >= least) ++possible;
  if (possible < best.size()) {  // nothing behind these is kept
    best = best.first(possible);
    tails = {};
  }
  uint64_t total = 0;
  for (const auto& [logit, token] : best) total += weight_of((logit - highest) / temperature);
  const double factor = factor_of(temperature), top = step_at(highest, factor);
  std::array<uint64_t, kLogitSteps> weights{};
  if (!tails.empty()) {
    std::array<uint64_t, kLogitSteps> counts{};
    for (const LogitCounts& part : tails) {
      if (part.counts.size() != kLogitSteps) throw std::invalid_argument("counts of other steps");
      const auto first = static_cast<size_t>(place_of(top, step_at(part.best, factor)));
      for (size_t place = first; place < kLogitSteps; ++place)
        counts[place] += part.counts[place - first];
    }
    for (const auto& [logit, token] : best) {
      const auto place = static_cast<size_t>(place_of(top, step_at(logit, factor)));
      if (place < kLogitSteps && counts[place] > 0) --counts[place];
    }
    for (size_t place = 0; place < kLogitSteps; ++place) {
      const double step = top - static_cast<double>(place);
      if (step < step_at(least, factor)) break;
      const double below =
          (step - static_cast<double>(highest) * factor) * (kLn2 / kLogitStepsPerOctave);
      weights[place] = counts[place] * weight_of(std::min(0.0f, static_cast<float>(below)));
      total += weights[place];
    }
  }
  const auto wanted = std::min(total, static_cast<uint64_t>(std::ceil(static_cast<double>(total) *
                                                                      static_cast<double>(top_p))));
  uint64_t kept = 0;
  for (size_t i = 0; i < best.size(); ++i) {
    kept += weight_of((best[i].first - highest) / temperature);
    if (kept >= wanted) return {.best = i + 1};
  }
  size_t place = 0;
  while (place + 1 < kLogitSteps && (kept += weights[place]) < wanted) ++place;
  return {.least = first_of(top - static_cast<double>(place), highest, factor)};
}

}  // namespace hearth
