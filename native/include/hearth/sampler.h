// Chooses a token from logits. One for each sequence: it carries the random state and the tokens
// seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <unordered_set>
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

// A token's share of the probabilities: e^((logit - best) / temperature) * kWeightOne, rounded; 0
// below e^-30. Whole numbers, whose sums do not depend on the order: so a draw needs no sorted row,
// and every machine draws the same token.
inline constexpr uint64_t kWeightOne = uint64_t{1} << 44;
// exponent: (logit - best) / temperature, at most 0
uint64_t weight_of(float exponent);

class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);

  // logits: of all tokens in order; or, with `ids`, of those tokens only (see best_candidates).
  // Order: repetition penalty, temperature, top-k, min-p, top-p, then a draw in the order of ids.
  // Ties go to the lower id. A logit of -inf is impossible. Throws std::runtime_error for a logit
  // that is NaN or +inf, and where nothing is possible; std::invalid_argument for 2^19 logits or
  // more, whose weights might not fit their sum.
  uint32_t sample(std::span<const float> logits, std::span<const uint32_t> ids = {});
  void accept(uint32_t token) { seen_.insert(token); }

 private:
  std::span<const float> penalize(std::span<const float> logits, std::span<const uint32_t> ids);
  uint32_t draw(std::span<const float> logits, std::span<const uint32_t> ids, float best);

  SamplerConfig config_;
  std::mt19937_64 random_;
  std::unordered_set<uint32_t> seen_;
};

// The best `count` of a row of logits, better first (ties: lower id first; not-a-number is worst).
// Token ids begin at first_id. A sampler that is greedy, or keeps the `count` best, chooses the
// same token from all ranks' candidates as from whole rows. That needs a repetition penalty of 1.
void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids);

// Copies a row of logits to `out` (of its size), with `value` for tokens whose bit in `allowed` is
// 0. The row's tokens begin at first_id, the bits at token 0, the lowest of a byte first.
void masked_logits(std::span<const float> logits, const uint8_t* allowed, size_t first_id,
                   float value, float* out);

}  // namespace hearth
