// Tokens by their logits.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace hearth {

// A token's logit and id.
using Candidate = std::pair<float, uint32_t>;

// Better first; equal logits by the lower id, so that the choice never depends on the sort.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// The highest of a row; -inf where there is none.
inline float largest(std::span<const float> x) {
  constexpr size_t kAtOnce = 16;  // so that compilers use vectors
  std::array<float, kAtOnce> top;
  top.fill(-std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kAtOnce <= x.size(); i += kAtOnce) {
    for (size_t j = 0; j < kAtOnce; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
  }
  for (; i < x.size(); ++i) top[0] = x[i] > top[0] ? x[i] : top[0];
  return *std::max_element(top.begin(), top.end());
}

}  // namespace hearth
