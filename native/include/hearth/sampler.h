// Chooses a token from logits. One for each sequence: it carries the random state and the tokens
// seen.
#pragma once

#include <cstddef>
#include <cstdint>
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

// A draw by the Gumbel-max trick (Gumbel, 1954; Maddison, Tarlow, Minka: A* sampling, 2014): of the
// tokens that a sampler keeps, the one with the highest logit / temperature + noise. That follows
// the softmax of the kept ones. Noise comes from seed, number of the draw and token alone. So each
// rank can find the best token of its own part of a row, and the best of these is that of the row.
struct Draw {
  float temperature = 1.0f;  // above 0
  uint64_t seed = 0;
  uint64_t number = 0;  // draws of the sequence before it
};

// Of the Gumbel distribution, -ln(-ln u) of a uniform u; within [-4, 37].
double gumbel_noise(uint64_t seed, uint64_t number, uint32_t token);

// A token's share of the probabilities: e^((logit - best) / temperature) * kWeightOne, rounded; 0
// below e^-30. Whole numbers, whose sums do not depend on the order: every machine finds the same
// nucleus.
inline constexpr uint64_t kWeightOne = uint64_t{1} << 44;
// exponent: (logit - best) / temperature, at most 0
uint64_t weight_of(float exponent);

// Top-p is exact as long as its nucleus has no more than so many tokens. Tokens behind these are
// counted by steps of logit / temperature, of which a doubling of the probability has 16. They
// weigh as much as the middle of their step: at most 2.2 % more or less than by their logit, and
// mostly that evens out. A larger nucleus ends with a whole step. So a rank can say in a few
// kilobytes all that a nucleus needs of its part of a row.
inline constexpr size_t kNucleusTokens = 256;
inline constexpr int kLogitStepsPerOctave = 16;
// Down to e^-30 of the best.
inline constexpr size_t kLogitSteps = 693;

// The tokens of a part of a row, counted by steps from that of its best logit downwards.
struct LogitCounts {
  float best;
  std::span<const uint32_t> counts;  // [kLogitSteps]
};

// counts: u32 [kLogitSteps]. best: the highest of the logits; NaN is not counted.
void count_logits(std::span<const float> logits, float best, float temperature, uint32_t* counts);

class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);

  // logits: of all tokens in order; or, with `ids`, of those tokens only (see best_candidates).
  // Order: repetition penalty, temperature, top-k, min-p, top-p, then a draw. Ties go to the lower
  // id. A logit of -inf is impossible. Throws std::runtime_error for a logit
  // that is NaN or +inf, and where nothing is possible; std::invalid_argument for 2^19 logits or
  // more, whose weights might not fit their sum.
  // tails: with `ids`, of every rank's part, for top-p without top-k; see kNucleusTokens. Without
  // them the ids are all tokens that may be kept.
  uint32_t sample(std::span<const float> logits, std::span<const uint32_t> ids = {},
                  std::span<const LogitCounts> tails = {});
  void accept(uint32_t token) { seen_.insert(token); }
  // Of the next draw; its temperature is above 0 only where there is one.
  Draw next_draw() const { return {config_.temperature, config_.seed, draws_}; }

 private:
  std::span<const float> penalize(std::span<const float> logits, std::span<const uint32_t> ids);
  uint32_t draw(std::span<const float> logits, std::span<const uint32_t> ids,
                std::span<const LogitCounts> tails, const Draw& draw, float best) const;

  SamplerConfig config_;
  uint64_t draws_ = 0;
  std::unordered_set<uint32_t> seen_;
};

// The best `count` of a row of logits, better first (ties: lower id first; not-a-number is worst).
// Token ids begin at first_id. A sampler that is greedy, or keeps the `count` best, chooses the
// same token from all ranks' candidates as from whole rows. That needs a repetition penalty of 1.
void best_candidates(std::span<const float> logits, size_t count, uint32_t first_id, float* best,
                     uint32_t* ids);

// The tokens of a row that a draw may choose under some min-p, at most `count`: the one that it
// chooses without comes first; then those that it chooses of the tokens that are likelier than the
// one before. They are about ln(n) of n. A sampler of this draw without top-k, top-p and penalty
// chooses the same token from all ranks' as from whole rows: without min-p from one of each. The
// rest of `count` is the lowest finite logit and first_id.
void drawn_candidates(std::span<const float> logits, const Draw& draw, size_t count,
                      uint32_t first_id, float* best, uint32_t* ids);

// What a sampler with top-p, and maybe min-p, needs of a rank's part of a row: the best
// kNucleusTokens, then drawn candidates, `count` in all; and counts, u32 [kLogitSteps]. Where
// `count` is the size of the part: all of its tokens, best first. The rest of the best is filled up
// like that of the drawn.
void nucleus_candidates(std::span<const float> logits, const Draw& draw, size_t count,
                        uint32_t first_id, float* best, uint32_t* ids, uint32_t* counts);

// Copies a row of logits to `out` (of its size), with `value` for tokens whose bit in `allowed` is
// 0. The row's tokens begin at first_id, the bits at token 0, the lowest of a byte first.
void masked_logits(std::span<const float> logits, const uint8_t* allowed, size_t first_id,
                   float value, float* out);

}  // namespace hearth
