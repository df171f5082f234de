// Chooses a token from logits. One for each sequence: it carries the random state and the tokens
// seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

namespace hearth {

struct SamplerConfig {
  float temperature = 0.0f;         // 0 is greedy
  uint32_t top_k = 0;               // 0 keeps all
  float top_p = 1.0f;               // 1 keeps all
  float min_p = 0.0f;               // share of the best's probability; 0 keeps all
  float repetition_penalty = 1.0f;  // 1 is off
  uint64_t seed = 0;

  // Throws std::invalid_argument naming the value and its range.
  void validate() const;
};

class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);

  // logits: of all tokens in order; or, with `ids`, of those tokens only (see best_candidates).
  // Order: repetition penalty, temperature, top-k, min-p, top-p, then a draw. Ties go to the lower
  // id. Not-a-number counts as impossible; when nothing is possible, throws std::runtime_error.
  uint32_t sample(std::span<const float> logits, std::span<const uint32_t> ids = {});
  void accept(uint32_t token) { seen_.insert(token); }

 private:
  float penalized(float logit, uint32_t token) const;

  SamplerConfig config_;
  std::mt19937_64 random_;
  std::unordered_set<uint32_t> seen_;
};

// The best `count` of a row of logits, better first (ties: lower id first; not-a-number is worst).
// Token ids begin at first_id. A sampler that is greedy, or keeps the `count` best, chooses the
// same token from all ranks' candidates as from whole rows. That needs a repetition penalty of 1.
void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids);

}  // namespace hearth
