// Draws by the Gumbel-max trick; see Draw in hearth/sampler.h.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hearth/sampler.h"

namespace hearth {

// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
// 2014).
constexpr uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Random bits of each token of a draw.
class RandomBits {
 public:
  RandomBits(uint64_t seed, uint64_t number)
      : key_(mixed(mixed(seed + kStep) + (number + 1) * kStep)) {}
  uint64_t of(uint32_t token) const { return mixed(key_ + (token + uint64_t{1}) * kStep); }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  uint64_t key_;
};

// -ln(-ln(1 - v)), v within (0, 1) of the leading 52 bits: high where v is small. Without library
// calls or fused operations: the same bits on every machine.
double gumbel_of(uint64_t bits);

// The token that a draw chooses of those that it has looked at.
struct Chosen {
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  double score = -std::numeric_limits<double>::infinity();
  float logit = 0.0f;
  uint32_t token = kNone;
};

class Scores {
 public:
  explicit Scores(const Draw& draw)
      : bits_(draw.seed, draw.number), factor_(1.0 / static_cast<double>(draw.temperature)) {}

  // Of logits from `least` on, which is finite; NaN is none of them.
  void look(float logit, uint32_t token, float least, Chosen& chosen) const {
    const double scaled = static_cast<double>(logit) * factor_;
    const uint64_t bits = bits_.of(token);
    // -ln(1 - v) >= v >= 2^-(zeros + 1), so the noise is at most (zeros + 1) ln 2: mostly less than
    // a token would need. (The rest is for rounding.)
    const double most = scaled + (std::countl_zero(bits) + 1) * 0.6931471806 + 1e-9;
    // (One branch, since each alone may be true of half a row.)
    if (!(static_cast<int>(most >= chosen.score) & static_cast<int>(logit >= least))) return;
    const double score = scaled + gumbel_of(bits);
    if (score > chosen.score || (score == chosen.score && token < chosen.token))
      chosen = {score, logit, token};
  }

 private:
  RandomBits bits_;
  double factor_;
};

}  // namespace hearth
