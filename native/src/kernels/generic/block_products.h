// The matrix products of quantized weights with int8 activations. The sum of 32 columns is an exact
// integer; parts are then added in order, by one fused multiply-add each, and one more for minima,
// as in the scalar twin.
//
// A codec `C` unpacks weights (codecs.h). The instructions that multiply int8 differ most between
// CPUs, so the trait `B` of bytes has those too:
//
//   Tiles          the numbers of tokens that a tile may have, the largest first
//   kPanelTokens   from how many tokens on weights are unpacked to a panel; 0 for never
//   kSignedOffset  what from_int8 adds to signed codes
//   Input, input   the activations of one token in a part
//   Sums<C>, add<C, kQuad>   the products of four columns, in turn, with the scales applied
//   total          the sums as vectors of int32
//   Halves, halves           the sums of a token's activations in a part
//   times<C>       those times the scales or minima of a part
//   store, load, store_scale, load_scale     to and from a panel
#pragma once

#include "codecs.h"
#include "products.h"

namespace hearth {
namespace {

template <typename C>
constexpr size_t kGroupBlockBytes =
    kGroupRows * kTypeInfos[static_cast<size_t>(C::kType)].block_bytes;

template <typename B>
using Rows = typename B::V::Float[kGroupVectors<typename B::V>];
template <typename B>
using WholeRows = typename B::V::Int[kGroupVectors<typename B::V>];

// Adds a part's sums to y.
template <typename B, typename C>
[[gnu::always_inline]] inline void finish_part(const typename B::template Sums<C>& sums,
                                               typename B::Halves halves, float x_scale,
                                               const Rows<B>& scale, const Rows<B>& minimum,
                                               const PartScales<B>& scales,
                                               const PartScales<B>& minima, Rows<B>& y) {
  using V = typename B::V;
  constexpr int32_t kOffset = C::kOffset + (C::kSigned ? B::kSignedOffset : 0);
  WholeRows<B> whole;
  B::template total<C>(sums, whole);
  if constexpr (kOffset != 0) {
    WholeRows<B> offset;
    B::template times<C, kOffset>(halves, scales, offset);
    unrolled<kGroupVectors<V>>([&](auto v) { whole[v] = V::sub(whole[v], offset[v]); });
  }
  const typename V::Float factor = V::broadcast(x_scale);
  unrolled<kGroupVectors<V>>(
      [&](auto v) { y[v] = V::fma(V::from_int(whole[v]), V::mul(scale[v], factor), y[v]); });
  if constexpr (C::kMinimum) {
    WholeRows<B> least;
    B::template times<C, 1>(halves, minima, least);
    unrolled<kGroupVectors<V>>(
        [&](auto v) { y[v] = V::fma(V::from_int(least[v]), V::mul(minimum[v], factor), y[v]); });
  }
}

// A few tokens read the weights in one pass: each part asks for as many bytes further on.
template <typename B, typename C, size_t kPart>
void prefetch_part(const uint8_t* block, size_t b) {
  constexpr size_t kBytes = kGroupBlockBytes<C>, kAhead = B::V::kAhead;
  if constexpr (C::kParts > 1) {
    constexpr size_t kFirst = (kPart * kBytes / C::kParts + kLine - 1) / kLine * kLine;
    for (size_t at = kFirst; at < (kPart + 1) * kBytes / C::kParts; at += kLine)
      prefetch(block + kAhead + at);
  } else {
    constexpr size_t kWhole = kBytes / kLine * kLine, kRest = kBytes - kWhole;
    for (size_t at = 0; at < kWhole; at += kLine) prefetch(block + kAhead + at);
    if constexpr (kRest > 0) {
      // The rests of several blocks make a line more.
      constexpr size_t kEvery = kLine / kRest;
      if (b % kEvery == kEvery - 1) prefetch(block + kAhead + kWhole);
    }
  }
}

// A few tokens by one group, straight from the weights.
template <typename B, typename C, size_t kTokens>
void few_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t token, size_t group) {
  using V = typename B::V;
  const size_t parts = a.columns / kBlock;
  Rows<B> sums[kTokens];
  unrolled<kTokens>(
      [&](auto t) { unrolled<kGroupVectors<V>>([&](auto v) { sums[t][v] = V::zero(); }); });
  const uint8_t* block = a.weights + group * a.group_bytes;
  const int8_t* q = x.q + token * a.columns;
  const float* scales = x.scales + token * parts;
  const HalfSums* halves = x.sums + token * parts;
  for (size_t b = 0; b < parts; b += C::kParts, block += kGroupBlockBytes<C>) {
    BlockHeader<B> header;
    C::header(block, header);
    unrolled<C::kParts>([&](auto p) {
      if constexpr (V::kAhead > 0) prefetch_part<B, C, p>(block, b);
      PartScales<B> part_scales, part_minima;
      C::template scales<p>(header, part_scales, part_minima);
      PartCodes<B> codes;
      C::template codes<p>(block, codes);
      unrolled<kTokens>([&](auto t) {
        const typename B::Input input = B::input(q + t * a.columns + (b + p) * kBlock);
        typename B::template Sums<C> part;
        unrolled<kQuads>(
            [&](auto i) { B::template add<C, i>(codes[i], input, part_scales, part); });
        const size_t at = t * parts + b + p;
        finish_part<B, C>(part, B::halves(halves + at), scales[at], header.scale, header.minimum,
                          part_scales, part_minima, sums[t]);
      });
    });
  }
  const size_t row = group * kGroupRows;
  unrolled<kTokens>(
      [&](auto t) { store_rows<V>(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row); });
}

// -- Many tokens (see products.h)

constexpr size_t kPanelGroups = 2;
// The unpacked weights of a run take 9 to 13 KiB of the first-level cache, the activations of a
// tile 3.
constexpr size_t kRunParts = 16;

// One part of a tile's tokens.
struct BlockTile {
  int8_t q[kTileTokens][kBlock];
  float scales[kTileTokens];
  HalfSums halves[kTileTokens];
};

// One part of a few groups: four columns of each row, then the next four; and the scales.
struct alignas(kLine) BlockPanel {
  uint8_t codes[kQuads][kPanelGroups][kWord];
  float scale[kPanelGroups][kGroupRows];
};

// Members that not every type has.
struct alignas(kLine) PanelScales {
  int32_t scales[2][kPanelGroups][kGroupRows], minima[2][kPanelGroups][kGroupRows];
  float minimum[kPanelGroups][kGroupRows];
};

struct BlockScratch {
  BlockTile x[kSlabTiles][kRunParts];
  BlockPanel panel[kRunParts];
  PanelScales scales[kRunParts];
};

template <typename B>
void store_floats(const Rows<B>& from, float* to) {
  using V = typename B::V;
  unrolled<kGroupVectors<V>>([&](auto v) { V::store(to + V::kWidth * v, from[v]); });
}

template <typename B>
void load_floats(const float* from, Rows<B>& to) {
  using V = typename B::V;
  unrolled<kGroupVectors<V>>([&](auto v) { to[v] = V::load(from + V::kWidth * v); });
}

// A block of one group, to as many parts of the panel.
template <typename B, typename C>
void unpack_block(const uint8_t* block, size_t g, BlockPanel* panel, PanelScales* scales) {
  BlockHeader<B> header;
  C::header(block, header);
  unrolled<C::kParts>([&](auto p) {
    PartCodes<B> codes;
    C::template codes<p>(block, codes);
    unrolled<kQuads>([&](auto i) { B::store(panel[p].codes[i][g], codes[i]); });
    store_floats<B>(header.scale, panel[p].scale[g]);
    PartScales<B> part_scales, part_minima;
    C::template scales<p>(header, part_scales, part_minima);
    unrolled<C::kScales>([&](auto h) {
      B::store_scale(part_scales[h], scales[p].scales[h][g]);
      if constexpr (C::kMinimum) B::store_scale(part_minima[h], scales[p].minima[h][g]);
    });
    if constexpr (C::kMinimum) store_floats<B>(header.minimum, scales[p].minimum[g]);
  });
}

// y += the product of `parts` parts, or = it. The integer sums fill the registers; the sums in f32
// wait in memory.
template <typename B, typename C, size_t kTokens, size_t kGroups>
void block_tile(const BlockTile* x, const BlockPanel* panel, const PanelScales* extra, size_t parts,
                bool add, float* y, size_t y_stride, size_t rows) {
  using V = typename B::V;
  Rows<B> sums[kTokens][kGroups];
  unrolled<kTokens>([&](auto t) {
    unrolled<kGroups>([&](auto g) {
      const size_t row = g * kGroupRows;
      if (add) {
        load_rows<V>(y + t * y_stride + row, rows - row, sums[t][g]);
      } else {
        unrolled<kGroupVectors<V>>([&](auto v) { sums[t][g][v] = V::zero(); });
      }
    });
  });
  for (size_t b = 0; b < parts; ++b, ++x, ++panel, ++extra) {
    PartScales<B> scales[kGroups], minima[kGroups];
    unrolled<kGroups>([&](auto g) {
      unrolled<C::kScales>([&](auto h) {
        scales[g][h] = B::load_scale(extra->scales[h][g]);
        if constexpr (C::kMinimum) minima[g][h] = B::load_scale(extra->minima[h][g]);
      });
    });
    typename B::Input input[kTokens];
    unrolled<kTokens>([&](auto t) { input[t] = B::input(x->q[t]); });
    typename B::template Sums<C> part[kTokens][kGroups];
    unrolled<kQuads>([&](auto i) {
      typename B::Bytes codes[kGroups];
      unrolled<kGroups>([&](auto g) { codes[g] = B::load(panel->codes[i][g]); });
      unrolled<kTokens>([&](auto t) {
        unrolled<kGroups>(
            [&](auto g) { B::template add<C, i>(codes[g], input[t], scales[g], part[t][g]); });
      });
    });
    unrolled<kTokens>([&](auto t) {
      unrolled<kGroups>([&](auto g) {
        Rows<B> scale, minimum;
        load_floats<B>(panel->scale[g], scale);
        if constexpr (C::kMinimum) load_floats<B>(extra->minimum[g], minimum);
        finish_part<B, C>(part[t][g], B::halves(x->halves + t), x->scales[t], scale, minimum,
                          scales[g], minima[g], sums[t][g]);
        unrolled<kGroupVectors<V>>([&](auto v) { sums[t][g][v] = V::in_turn(sums[t][g][v]); });
      });
    });
  }
  unrolled<kTokens>([&](auto t) {
    unrolled<kGroups>([&](auto g) {
      const size_t row = g * kGroupRows;
      store_rows<V>(y + t * y_stride + row, sums[t][g], rows - row);
    });
  });
}

// Parts [begin, begin + parts) of kGroups groups, for a slab of tokens.
template <typename B, typename C, size_t kGroups>
void block_run(const MatmulArgs& a, size_t group, size_t begin, size_t parts, const Slab& slab,
               BlockScratch& scratch) {
  constexpr size_t kBytes = kGroupBlockBytes<C>;
  const uint8_t* weights = a.weights + group * a.group_bytes + begin / C::kParts * kBytes;
  for (size_t b = 0; b < parts; b += C::kParts) {
    unrolled<kGroups>([&](auto g) {
      unpack_block<B, C>(weights + g * a.group_bytes + b / C::kParts * kBytes, g, scratch.panel + b,
                         scratch.scales + b);
    });
  }
  const size_t row = group * kGroupRows;
  Prefetcher<kGroups> next(weights, a.group_bytes, parts / C::kParts * kBytes, slab.tiles());
  for (size_t tile = 0; tile < slab.tiles(); ++tile) {
    next.advance();
    float* y = a.y + (slab.first + tile * kTileTokens) * a.y_stride + row;
    with_constant<kTileTokens>(slab.tile_tokens(tile), [&](auto tokens) {
      block_tile<B, C, tokens, kGroups>(scratch.x[tile], scratch.panel, scratch.scales, parts,
                                        begin > 0, y, a.y_stride, a.rows - row);
    });
  }
}

inline void copy_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t begin, size_t parts,
                        const Slab& slab, BlockScratch& scratch) {
  for (size_t t = 0; t < slab.tokens; ++t) {
    const size_t at = (slab.first + t) * (a.columns / kBlock) + begin, in_tile = t % kTileTokens;
    for (size_t b = 0; b < parts; ++b) {
      BlockTile& to = scratch.x[t / kTileTokens][b];
      std::memcpy(to.q[in_tile], x.q + (at + b) * kBlock, kBlock);
      to.scales[in_tile] = x.scales[at + b];
      to.halves[in_tile] = x.sums[at + b];
    }
  }
}

template <typename B, typename C>
void many_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  static_assert(kRunParts % C::kParts == 0);
  auto& scratch = *static_cast<BlockScratch*>(a.scratch);
  const size_t all = a.columns / kBlock;
  visit_slabs(a.tokens, [&](const Slab& slab) {
    for (size_t begin = 0; begin < all; begin += kRunParts) {
      const size_t parts = smaller(kRunParts, all - begin);
      copy_blocks(a, x, begin, parts, slab, scratch);
      visit_groups<kPanelGroups>(0, a.groups, [&](size_t g, auto groups) {
        block_run<B, C, groups>(a, g, begin, parts, slab, scratch);
      });
    }
  });
}

// The weights of a group stay in the first-level cache while all tokens pass over them.
template <typename B, typename C>
void matmul_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  if constexpr (B::kPanelTokens > 0) {
    if (a.tokens >= B::kPanelTokens) return many_blocks<B, C>(a, x);
  }
  for (size_t g = 0; g < a.groups; ++g) {
    visit_tiles(typename B::Tiles(), a.tokens,
                [&](size_t t, auto tokens) { few_blocks<B, C, tokens>(a, x, t, g); });
  }
}

// The products of all quantized types.
template <typename B>
constexpr void set_blocks(Kernels& kernels) {
  const auto set = [&]<typename C>(C*) {
    kernels.matmul_blocks[static_cast<size_t>(C::kType)] = matmul_blocks<B, C>;
  };
  [&]<typename... C>(C*... each) {
    (set(each), ...);
  }(static_cast<Q80<B>*>(nullptr), static_cast<Q40<B>*>(nullptr), static_cast<Q41<B>*>(nullptr),
    static_cast<Q50<B>*>(nullptr), static_cast<Q51<B>*>(nullptr), static_cast<Q2K<B>*>(nullptr),
    static_cast<Q3K<B>*>(nullptr), static_cast<Q4K<B>*>(nullptr), static_cast<Q5K<B>*>(nullptr),
    static_cast<Q6K<B>*>(nullptr), static_cast<Iq4Nl<B>*>(nullptr), static_cast<Iq4Xs<B>*>(nullptr),
    static_cast<Mxfp4<B>*>(nullptr));
}

}  // namespace
}  // namespace hearth
