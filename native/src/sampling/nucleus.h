// Nucleus sampling (Holtzman and others: The curious case of neural text degeneration, 2020) over
// rows that several ranks hold; see LogitCounts in hearth/sampler.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/sampler.h"
#include "sampling/order.h"

namespace hearth {

// The tokens of a nucleus: so many of the best, or, where these are not enough, all from this logit
// on.
struct Nucleus {
  size_t best = 0;
  float least = 0.0f;
};

// The best tokens of a row, better first: at most kNucleusTokens, and of those only the ones within
// the steps of counts, which count_logits made of the row.
std::vector<Candidate> nucleus_tokens(std::span<const float> logits, const LogitCounts& counted,
                                      float temperature);

// best: the best tokens of a row (logit, token), better first, at least one. tails: counts of
// all its tokens; empty if `best` is the whole row. least: the logit below which min-p drops
// tokens.
Nucleus find_nucleus(std::span<const Candidate> best, std::span<const LogitCounts> tails,
                     float temperature, float top_p, float least);

}  // namespace hearth
