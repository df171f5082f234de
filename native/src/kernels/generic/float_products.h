// The matrix products of f32 and f16 weights with f32 activations. Even and odd columns are summed
// apart, and then added, as in the scalar twin.
#pragma once

#include "products.h"

namespace hearth {
namespace {

constexpr size_t kColumnsAtOnce = 4;

// A few tokens by kGroups groups, straight from the weights.
template <typename V, typename Number, size_t kTokens, size_t kGroups>
void few_floats(const MatmulArgs& a, const float* x, size_t token, size_t group) {
  using Float = typename V::Float;
  constexpr size_t kVectors = kGroups * kGroupVectors<V>;
  Float sums[2][kTokens][kVectors];
  unrolled<kTokens>([&](auto t) {
    unrolled<kVectors>([&](auto v) { sums[0][t][v] = sums[1][t][v] = V::zero(); });
  });
  x += token * a.columns;
  const auto group_weights = [&](size_t g) {
    return reinterpret_cast<const Number*>(a.weights + (group + g) * a.group_bytes);
  };
  const auto load_column = [&](size_t c, Float(&column)[kVectors]) HEARTH_ALWAYS_INLINE {
    unrolled<kVectors>([&](auto v) {
      column[v] = V::load(group_weights(v / kGroupVectors<V>) + c * kGroupRows +
                          v % kGroupVectors<V> * V::kWidth);
    });
  };
  size_t c = 0;
  for (; c + kColumnsAtOnce <= a.columns; c += kColumnsAtOnce) {
    if constexpr (V::kFloatAhead > 0) {
      if (c % (2 * kLine / (kGroupRows * sizeof(Number))) == 0) {
        unrolled<kGroups>([&](auto g) {
          const auto* at = reinterpret_cast<const uint8_t*>(group_weights(g) + c * kGroupRows);
          prefetch_l2(at + V::kFloatAhead / kGroups);
          prefetch_l2(at + V::kFloatAhead / kGroups + kLine);
        });
      }
    }
    typename V::FourFloats four[kTokens];
    unrolled<kTokens>([&](auto t) { four[t] = V::load_four(x + t * a.columns + c); });
    unrolled<kColumnsAtOnce>([&](auto lane) {
      Float column[kVectors];
      load_column(c + lane, column);
      // Loaded once for all tokens.
      if constexpr (kTokens > 1)
        unrolled<kVectors>([&](auto v) { column[v] = V::in_turn(column[v]); });
      unrolled<kTokens>([&](auto t) {
        unrolled<kVectors>([&](auto v) {
          Float& sum = sums[lane % 2][t][v];
          sum = V::template fma_lane<lane>(column[v], four[t], sum);
        });
      });
    });
  }
  unrolled<kColumnsAtOnce - 1>([&](auto i) {
    if (c + i >= a.columns) return;
    Float column[kVectors];
    load_column(c + i, column);
    unrolled<kTokens>([&](auto t) {
      const Float value = V::broadcast(x[t * a.columns + c + i]);
      unrolled<kVectors>(
          [&](auto v) { sums[i % 2][t][v] = V::fma(column[v], value, sums[i % 2][t][v]); });
    });
  });
  unrolled<kTokens>([&](auto t) {
    unrolled<kGroups>([&](auto g) {
      Float rows[kGroupVectors<V>];
      unrolled<kGroupVectors<V>>([&](auto v) {
        const size_t at = g * kGroupVectors<V> + v;
        rows[v] = V::add(sums[0][t][at], sums[1][t][at]);
      });
      const size_t row = (group + g) * kGroupRows;
      store_rows<V>(a.y + (token + t) * a.y_stride + row, rows, a.rows - row);
    });
  });
}

// -- Many tokens (see products.h)

// A trait `W` has the vectors of a tile, which may be wider than those of V: a vector then has rows
// of more than one group. Four tokens by W::kPanelGroups groups: with three vectors, seven loads
// for twelve multiply-adds.
constexpr size_t kFloatTokens = 4;
using FloatSlab = Slab<kFloatTokens>;
// The widened weights of a run take 12 KiB of the first-level cache, or 24 of AVX-512; the
// activations of a tile 2.
constexpr size_t kRunColumns = 128;
// The sums of so many groups (144 KiB) stay in the second-level cache from run to run.
constexpr size_t kBatchGroups = 18;

struct FloatTile {
  float x[kFloatTokens][kRunColumns];
};

// The sums so far of even and of odd columns, of one token.
template <typename W>
struct alignas(kLine) FloatSums {
  float rows[2][W::kPanelGroups * kGroupRows];
};

template <typename W>
struct FloatScratch {
  FloatTile x[FloatSlab::kTiles];
  FloatSums<W> sums[kBatchGroups / W::kPanelGroups][kSlabTokens];
  // Even columns, then odd ones.
  alignas(kLine) float panel[2][kRunColumns / 2][W::kPanelGroups * kGroupRows];
};

// Columns of one parity: with both at once, a tile would have to be half as large. Lanes behind the
// last group hold anything, and are not stored.
template <typename W, size_t kTokens, size_t kGroups>
void float_tile(const FloatTile& tile, const FloatScratch<W>& scratch, size_t parity,
                size_t columns, FloatSums<W>* totals) {
  using Float = typename W::Float;
  constexpr size_t kVectors = (kGroups * kGroupRows + W::kWidth - 1) / W::kWidth;
  Float sums[kTokens][kVectors];
  unrolled<kTokens>([&](auto t) {
    unrolled<kVectors>(
        [&](auto v) { sums[t][v] = W::load(totals[t].rows[parity] + W::kWidth * v); });
  });
  const auto* panel = scratch.panel[parity];
  HEARTH_UNROLL_4
  for (size_t c = 0; c < columns; ++c) {
    Float weights[kVectors];
    unrolled<kVectors>([&](auto v) { weights[v] = W::load(panel[c] + W::kWidth * v); });
    unrolled<kTokens>([&](auto t) {
      const Float x = W::broadcast(tile.x[t][2 * c + parity]);
      unrolled<kVectors>([&](auto v) { sums[t][v] = W::fma(weights[v], x, sums[t][v]); });
    });
  }
  unrolled<kTokens>([&](auto t) {
    unrolled<kVectors>(
        [&](auto v) { W::store(totals[t].rows[parity] + W::kWidth * v, sums[t][v]); });
  });
}

// Columns [begin, begin + columns) of kGroups groups, for a slab of tokens.
template <typename V, typename W, typename Number, size_t kGroups>
void float_run(const MatmulArgs& a, size_t group, size_t begin, size_t columns,
               const FloatSlab& slab, FloatScratch<W>& scratch, FloatSums<W>* totals) {
  constexpr size_t kColumnBytes = kGroupRows * sizeof(Number);
  const size_t group_bytes = a.group_bytes;  // which the stores below cannot change
  const uint8_t* weights = a.weights + group * group_bytes + begin * kColumnBytes;
  for (size_t c = 0; c < columns; ++c) {
    unrolled<kGroups>([&](auto g) {
      const auto* from =
          reinterpret_cast<const Number*>(weights + g * group_bytes + c * kColumnBytes);
      float* to = scratch.panel[c % 2][c / 2] + g * kGroupRows;
      unrolled<kGroupVectors<V>>(
          [&](auto v) { V::store(to + V::kWidth * v, V::load(from + V::kWidth * v)); });
    });
  }
  Prefetcher<kGroups> next(weights, group_bytes, columns * kColumnBytes, slab.tiles());
  for (size_t tile = 0; tile < slab.tiles(); ++tile) {
    next.advance();
    FloatSums<W>* to = totals + tile * kFloatTokens;
    with_constant<kFloatTokens>(slab.tile_tokens(tile), [&](auto tokens) {
      float_tile<W, tokens, kGroups>(scratch.x[tile], scratch, 0, (columns + 1) / 2, to);
      float_tile<W, tokens, kGroups>(scratch.x[tile], scratch, 1, columns / 2, to);
    });
  }
}

// Groups [first, last), at most kBatchGroups, for a slab of tokens.
template <typename V, typename W, typename Number>
void float_batch(const MatmulArgs& a, const float* x, size_t first, size_t last,
                 const FloatSlab& slab) {
  constexpr size_t kGroups = W::kPanelGroups;
  auto& scratch = *static_cast<FloatScratch<W>*>(a.scratch);
  for (auto& of_groups : scratch.sums)
    std::memset(static_cast<void*>(of_groups), 0, slab.tokens * sizeof(FloatSums<W>));
  for (size_t begin = 0; begin < a.columns; begin += kRunColumns) {
    const size_t columns = smaller(kRunColumns, a.columns - begin);
    for (size_t t = 0; t < slab.tokens; ++t) {
      std::memcpy(scratch.x[t / kFloatTokens].x[t % kFloatTokens],
                  x + (slab.first + t) * a.columns + begin, columns * sizeof(float));
    }
    visit_groups<kGroups>(first, last, [&](size_t g, auto groups) {
      float_run<V, W, Number, groups>(a, g, begin, columns, slab, scratch,
                                      scratch.sums[(g - first) / kGroups]);
    });
  }
  for (size_t g = first; g < last; ++g) {
    const size_t row = g * kGroupRows, at = (g - first) % kGroups * kGroupRows;
    for (size_t t = 0; t < slab.tokens; ++t) {
      const FloatSums<W>& sums = scratch.sums[(g - first) / kGroups][t];
      typename V::Float rows[kGroupVectors<V>];
      unrolled<kGroupVectors<V>>([&](auto v) {
        rows[v] = V::add(V::load(sums.rows[0] + at + V::kWidth * v),
                         V::load(sums.rows[1] + at + V::kWidth * v));
      });
      store_rows<V>(a.y + (slab.first + t) * a.y_stride + row, rows, a.rows - row);
    }
  }
}

template <typename V, typename W, typename Number>
void many_floats(const MatmulArgs& a, const float* x) {
  visit_slabs<kFloatTokens>(a.tokens, [&](const FloatSlab& slab) {
    for (size_t g = 0; g < a.groups; g += kBatchGroups)
      float_batch<V, W, Number>(a, x, g, smaller(g + kBatchGroups, a.groups), slab);
  });
}

// One token takes two groups at once, so that there are enough chains of additions to hide the
// latency of one.
template <typename V, typename W, typename Number>
void matmul_floats(const MatmulArgs& a, const float* x) {
  if constexpr (V::kPanelTokens > 0) {
    if (a.tokens >= V::kPanelTokens) return many_floats<V, W, Number>(a, x);
  }
  if (a.tokens == 1) {
    visit_groups<2>(0, a.groups,
                    [&](size_t g, auto groups) { few_floats<V, Number, 1, groups>(a, x, 0, g); });
    return;
  }
  visit_groups<V::kFloatTileGroups>(0, a.groups, [&](size_t g, auto groups) {
    visit_tiles(typename V::FloatTiles(), a.tokens,
                [&](size_t t, auto tokens) { few_floats<V, Number, tokens, groups>(a, x, t, g); });
  });
}

}  // namespace
}  // namespace hearth
