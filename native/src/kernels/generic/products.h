// Shared by the matrix products of floats and of blocks of int8.
#pragma once

#include "vector.h"

namespace hearth {
namespace {

// run(first token, constant number of tokens) for all tokens, in tiles of the sizes given.
template <typename Run, size_t... kTiles>
void visit_tiles(std::index_sequence<kTiles...>, size_t tokens, Run run) {
  size_t t = 0;
  const auto pass = [&](auto tile) {
    for (; t + tile <= tokens; t += tile) run(t, tile);
  };
  (pass(Index<kTiles>{}), ...);
}

// run(first group, constant number of groups) for groups [begin, end), kMost at a time and then
// the rest.
template <size_t kMost, typename Run>
void visit_groups(size_t begin, size_t end, Run run) {
  for (size_t g = begin; g < end; g += kMost)
    with_constant<kMost>(smaller(kMost, end - g), [&](auto groups) { run(g, groups); });
}

// Rows in y that fill kVectors vectors, of which the first `rows` exist.
template <typename V, size_t kVectors>
void load_rows(const float* y, size_t rows, typename V::Float (&v)[kVectors]) {
  constexpr size_t kRows = kVectors * V::kWidth;
  float all[kRows] = {};
  if (rows < kRows) {
    std::memcpy(all, y, rows * sizeof(float));
    y = all;
  }
  unrolled<kVectors>([&](auto i) { v[i] = V::load(y + V::kWidth * i); });
}

template <typename V, size_t kVectors>
void store_rows(float* y, const typename V::Float (&v)[kVectors], size_t rows) {
  constexpr size_t kRows = kVectors * V::kWidth;
  if (rows >= kRows) {
    unrolled<kVectors>([&](auto i) { V::store(y + V::kWidth * i, v[i]); });
    return;
  }
  float all[kRows];
  unrolled<kVectors>([&](auto i) { V::store(all + V::kWidth * i, v[i]); });
  std::memcpy(y, all, rows * sizeof(float));
}

// -- Many tokens
//
// Arithmetic bounds these products, so their operands stay within a core's caches (the order of
// loops is that of Goto and van de Geijn: Anatomy of high-performance matrix multiplication, 2008):
//   - the activations of up to 128 tokens are copied next to each other, tile by tile: rows that
//     are a power of two apart would compete for the same few sets of a cache;
//   - the weights of a few groups are unpacked once for all tokens, codes to bytes and f16 to f32;
//   - a tile of tokens by those groups keeps its sums in registers: each load of activations serves
//     all groups, and each load of weights all tokens.

constexpr size_t kSlabTokens = 128;

// The tokens of a slab, [first, first + tokens) of the product, in tiles.
template <size_t kTileTokens>
struct Slab {
  static constexpr size_t kTiles = (kSlabTokens + kTileTokens - 1) / kTileTokens;
  size_t first, tokens;

  size_t tiles() const { return (tokens + kTileTokens - 1) / kTileTokens; }
  size_t tile_tokens(size_t tile) const {
    return smaller(kTileTokens, tokens - tile * kTileTokens);
  }
};

template <size_t kTileTokens, typename Run>
void visit_slabs(size_t tokens, Run run) {
  for (size_t first = 0; first < tokens; first += kSlabTokens)
    run(Slab<kTileTokens>{first, smaller(kSlabTokens, tokens - first)});
}

// Asks for the weights that lie kAhead bytes behind `at`: of their bytes [begin, end), the lines
// that begin there. A few tokens read several groups of rows beside each other; what comes later is
// asked for in the order of memory, whichever group has it.
template <size_t kAhead, size_t kBegin, size_t kEnd>
[[gnu::always_inline]] inline void prefetch_ahead(const uint8_t* at) {
  constexpr size_t kFirst = (kBegin + kLine - 1) / kLine;
  unrolled<(kEnd + kLine - 1) / kLine - kFirst>(
      [&](auto i) { prefetch_l2(at + kAhead + (kFirst + i) * kLine); });
}

// Loads the weights that are unpacked next, a share of them with each tile of these.
template <size_t kGroups>
class Prefetcher {
 public:
  Prefetcher(const uint8_t* weights, size_t group_bytes, size_t bytes, size_t tiles)
      : next_(weights + kGroups * group_bytes),
        group_bytes_(group_bytes),
        share_((bytes + tiles * kLine - 1) / (tiles * kLine) * kLine) {}

  void advance() {
    for (size_t at = 0; at < share_; at += kLine) {
      for (size_t g = 0; g < kGroups; ++g) prefetch(next_ + g * group_bytes_ + at);
    }
    next_ += share_;
  }

 private:
  const uint8_t* next_;
  size_t group_bytes_, share_;
};

}  // namespace
}  // namespace hearth
