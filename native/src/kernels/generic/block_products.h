// The matrix products of quantized weights with int8 activations. The sum of 32 columns is an exact
// integer below 2^24, so its float is exact too. Sums of f32 are in order, by fused multiply-adds,
// as in the scalar twin:
//
//   of blocks of 32, each adds scale * activations' scale times its integer, and then its minimum
//     times the activations' sum;
//   of larger blocks the parts are added up first, integer sums times activations' scales and
//     minima times activations' sums, and then times the block's scale and minimum.
//
// A codec `C` unpacks weights (codecs.h). The instructions that multiply int8 differ most between
// CPUs, so the trait `B` of bytes has those too:
//
//   Tiles          the numbers of tokens that a tile may have, the largest first
//   kPanelTokens   from how many tokens on weights are unpacked to a panel; 0 for never
//   kTileTokens, kTileStripes, kRunParts   a tile of a panel, and its parts
//   kSignedOffset  what from_int8 adds to signed codes
//   Input, input   the activations of one token in a part
//   Side, side<C>  what else the products need of those: their sums, in some form
//   Sums<C>, add<C, kQuad>   the products of four columns, in turn
//   value<C>       the sum of a part's products times their integer scales, as f32
//   store, load, store_scale, load_scale     to and from a panel
#pragma once

#include "codecs.h"
#include "products.h"

// Inlines all calls of a function. Not where a sanitizer checks each access: the compiler then
// takes minutes and gigabytes.
#if defined(HEARTH_SANITIZED)
#define HEARTH_FLATTEN
#else
#define HEARTH_FLATTEN [[gnu::flatten]]
#endif

namespace hearth {
namespace {

template <typename C>
constexpr size_t kGroupBlockBytes =
    kGroupRows * kTypeInfos[static_cast<size_t>(C::kType)].block_bytes;

// By what a codec's unsigned codes are too large.
template <typename B, typename C>
constexpr int32_t kCodeOffset = C::kOffset + (C::kSigned ? B::kSignedOffset : 0);

// Minima of a part: one, or one for each half.
template <typename C>
constexpr size_t kMinima = !C::kMinimum      ? 0
                           : C::kScales == 2 ? 2
                                             : 1;
constexpr size_t kMostMinima = 2;

template <typename B>
void set_zero(Rows<B>& rows) {
  unrolled<kRowVectors<B>>([&](auto v) { rows[v] = B::V::zero(); });
}

// sum += a * b
template <typename B>
[[gnu::always_inline]] inline void add_product(const Rows<B>& a, typename B::V::Float b,
                                               Rows<B>& sum) {
  unrolled<kRowVectors<B>>([&](auto v) { sum[v] = B::V::fma(a[v], b, sum[v]); });
}

template <typename B>
[[gnu::always_inline]] inline void in_turn(Rows<B>& rows) {
  unrolled<kRowVectors<B>>([&](auto v) { rows[v] = B::V::in_turn(rows[v]); });
}

// What a part's minima are multiplied by.
template <typename C>
[[gnu::always_inline]] inline void minimum_factors(float x_scale, HalfSums sums,
                                                   float (&factors)[kMostMinima]) {
  if constexpr (kMinima<C> == 1)
    factors[0] = x_scale * static_cast<float>(sums.first + sums.second);
  if constexpr (kMinima<C> == 2) {
    factors[0] = x_scale * static_cast<float>(sums.first);
    factors[1] = x_scale * static_cast<float>(sums.second);
  }
}

// Adds a part of 32 columns, a block of its own, to `total`.
template <typename B, typename C>
[[gnu::always_inline]] inline void add_small_block(const Rows<B>& value, float x_scale,
                                                   float minimum_factor, const Rows<B>& scale,
                                                   const Rows<B>& minimum, Rows<B>& total) {
  using V = typename B::V;
  const auto factor = V::broadcast(x_scale);
  unrolled<kRowVectors<B>>(
      [&](auto v) { total[v] = V::fma(value[v], V::mul(scale[v], factor), total[v]); });
  if constexpr (C::kMinimum) add_product<B>(minimum, V::broadcast(minimum_factor), total);
}

// Adds the sums of a large block to `total`.
template <typename B, typename C>
[[gnu::always_inline]] inline void add_large_block(const Rows<B>& products, const Rows<B>& least,
                                                   const Rows<B>& scale, const Rows<B>& minimum,
                                                   Rows<B>& total) {
  using V = typename B::V;
  unrolled<kRowVectors<B>>([&](auto v) {
    total[v] = V::fma(scale[v], products[v], total[v]);
    if constexpr (C::kMinimum) total[v] = V::fma(minimum[v], least[v], total[v]);
  });
}

// -- A few tokens read the weights in one pass, straight from memory
//
// Functions that hold many vectors are flattened: of code of this size compilers stop inlining, and
// a call puts the vectors in memory (four tokens would take 2.5 times as long).

// Asks for weights that come later, a share with each part of a block.
template <typename B, typename C>
class BlockPrefetcher {
 public:
  explicit BlockPrefetcher(const uint8_t* weights) : at_(weights) {}

  template <size_t kPart>
  void part(size_t b) {
    if constexpr (C::kParts > 1) {
      ask<kPart * kBytes / C::kParts, (kPart + 1) * kBytes / C::kParts>();
    } else {
      constexpr size_t kWhole = kBytes / kLine * kLine, kRest = kBytes - kWhole;
      ask<0, kWhole>();
      if constexpr (kRest > 0) {
        // The rests of several blocks make a line more.
        constexpr size_t kEvery = kLine / kRest;
        if (b % kEvery == kEvery - 1) ask<kWhole, kBytes>();
      }
    }
  }
  void end_block() { at_ += kBytes; }

 private:
  // A block of each group of a stripe.
  static constexpr size_t kBytes = B::kGroups * kGroupBlockBytes<C>;
  template <size_t kBegin, size_t kEnd>
  void ask() const {
    prefetch_ahead<B::V::kAhead, kBegin, kEnd>(at_);
  }

  const uint8_t* at_;
};

// A few tokens by one stripe, of which `groups` exist.
template <typename B, typename C, size_t kTokens>
HEARTH_FLATTEN void few_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t token,
                               size_t group, size_t groups) {
  using V = typename B::V;
  constexpr bool kLarge = C::kParts > 1;
  const size_t parts = a.columns / kBlock;
  Rows<B> totals[kTokens], products[kTokens], least[kTokens];
  unrolled<kTokens>([&](auto t) { set_zero<B>(totals[t]); });
  const uint8_t* weights = a.weights + group * a.group_bytes;
  At<B> block = B::at(weights, a.group_bytes, groups);
  BlockPrefetcher<B, C> prefetcher(weights);
  const int8_t* q = x.q + token * a.columns;
  const float* x_scales = x.scales + token * parts;
  const HalfSums* x_sums = x.sums + token * parts;
  for (size_t b = 0; b < parts; b += C::kParts, block = block + kGroupBlockBytes<C>) {
    BlockHeader<B> header;
    C::header(block, header);
    if constexpr (kLarge) {
      unrolled<kTokens>([&](auto t) {
        set_zero<B>(products[t]);
        set_zero<B>(least[t]);
      });
    }
    unrolled<C::kParts>([&](auto p) {
      HEARTH_END_BASIC_BLOCK();
      if constexpr (V::kAhead > 0) prefetcher.template part<p>(b);
      PartScales<B> scales, minimum_scales;
      C::template scales<p>(header, scales, minimum_scales);
      Rows<B> minima[kMostMinima];
      if constexpr (kLarge)
        unrolled<kMinima<C>>([&](auto m) { B::to_float(minimum_scales[m], minima[m]); });
      PartCodes<B> codes;
      C::template codes<p>(block, codes);
      unrolled<kTokens>([&](auto t) {
        const size_t at = t * parts + b + p;
        const typename B::Input input = B::input(q + t * a.columns + (b + p) * kBlock);
        const typename B::Side side = B::template side<C>(x_sums[at]);
        typename B::template Sums<C> sums;
        unrolled<kQuads>(
            [&](auto i) { B::template add<C, i>(codes[i], input, side, scales, sums); });
        Rows<B> value;
        B::template value<C>(sums, side, scales, value);
        float factors[kMostMinima] = {};
        minimum_factors<C>(x_scales[at], x_sums[at], factors);
        if constexpr (kLarge) {
          add_product<B>(value, V::broadcast(x_scales[at]), products[t]);
          unrolled<kMinima<C>>(
              [&](auto m) { add_product<B>(minima[m], V::broadcast(factors[m]), least[t]); });
          in_turn<B>(products[t]);
          if constexpr (C::kMinimum) in_turn<B>(least[t]);
        } else {
          add_small_block<B, C>(value, x_scales[at], factors[0], header.scale, header.minimum,
                                totals[t]);
        }
      });
    });
    if constexpr (kLarge) {
      unrolled<kTokens>([&](auto t) {
        add_large_block<B, C>(products[t], least[t], header.scale, header.minimum, totals[t]);
      });
    }
    if constexpr (V::kAhead > 0) prefetcher.end_block();
  }
  const size_t row = group * kGroupRows;
  unrolled<kTokens>([&](auto t) {
    store_rows<V>(a.y + (token + t) * a.y_stride + row, totals[t], a.rows - row);
  });
}

// -- Many tokens (see products.h)

template <typename B>
constexpr size_t kStripeRows = B::kGroups * kGroupRows;

// One part of a tile's tokens.
template <typename B>
struct BlockTile {
  int8_t q[B::kTileTokens][kBlock];
  float scales[B::kTileTokens];
  float minimum_factors[B::kTileTokens][kMostMinima];
  typename B::Side sides[B::kTileTokens];
};

// One part of a few stripes: four columns of each row, then the next four; and the scales.
template <typename B>
struct alignas(kLine) BlockPanel {
  uint8_t codes[kQuads][B::kTileStripes][4 * kStripeRows<B>];
  float scale[B::kTileStripes][kStripeRows<B>];
};

// Members that not every type has. Of a large block, the first part has its minimum.
template <typename B>
struct alignas(kLine) PanelScales {
  int32_t scales[2][B::kTileStripes][kStripeRows<B>];
  float minima[kMostMinima][B::kTileStripes][kStripeRows<B>];
  float minimum[B::kTileStripes][kStripeRows<B>];
};

template <typename B>
using BlockSlab = Slab<B::kTileTokens>;

// With them in the first-level cache: the unpacked weights of a run, and the activations of a tile.
template <typename B>
struct BlockScratch {
  BlockTile<B> x[BlockSlab<B>::kTiles][B::kRunParts];
  BlockPanel<B> panel[B::kRunParts];
  PanelScales<B> scales[B::kRunParts];
};

template <typename B>
void store_floats(const Rows<B>& from, float* to) {
  using V = typename B::V;
  unrolled<kRowVectors<B>>([&](auto v) { V::store(to + V::kWidth * v, from[v]); });
}

template <typename B>
[[gnu::always_inline]] inline void load_floats(const float* from, Rows<B>& to) {
  using V = typename B::V;
  unrolled<kRowVectors<B>>([&](auto v) { to[v] = V::load(from + V::kWidth * v); });
}

// A block of stripe `s`, to as many parts of the panel.
template <typename B, typename C>
HEARTH_FLATTEN void unpack_block(At<B> block, size_t s, BlockPanel<B>* panel,
                                 PanelScales<B>* extra) {
  BlockHeader<B> header;
  C::header(block, header);
  store_floats<B>(header.scale, panel->scale[s]);
  if constexpr (C::kMinimum) store_floats<B>(header.minimum, extra->minimum[s]);
  unrolled<C::kParts>([&](auto p) {
    PartCodes<B> codes;
    C::template codes<p>(block, codes);
    unrolled<kQuads>([&](auto i) { B::store(panel[p].codes[i][s], codes[i]); });
    PartScales<B> scales, minimum_scales;
    C::template scales<p>(header, scales, minimum_scales);
    unrolled<C::kScales>([&](auto h) { B::store_scale(scales[h], extra[p].scales[h][s]); });
    if constexpr (C::kParts > 1) {
      unrolled<kMinima<C>>([&](auto m) {
        Rows<B> minima;
        B::to_float(minimum_scales[m], minima);
        store_floats<B>(minima, extra[p].minima[m][s]);
      });
    }
  });
}

// The value of a part for each token and stripe of a tile. The integer sums fill the registers.
template <typename B, typename C, size_t kTokens, size_t kStripes, typename Each>
[[gnu::always_inline]] inline void visit_values(const BlockTile<B>& x, const BlockPanel<B>& panel,
                                                const PanelScales<B>& extra, Each each) {
  PartScales<B> scales[kStripes];
  unrolled<kStripes>([&](auto s) {
    unrolled<C::kScales>([&](auto h) { scales[s][h] = B::load_scale(extra.scales[h][s]); });
  });
  typename B::Input input[kTokens];
  unrolled<kTokens>([&](auto t) { input[t] = B::input(x.q[t]); });
  typename B::template Sums<C> sums[kTokens][kStripes];
  unrolled<kQuads>([&](auto i) {
    typename B::Bytes codes[kStripes];
    unrolled<kStripes>([&](auto s) { codes[s] = B::load_panel(panel.codes[i][s]); });
    unrolled<kTokens>([&](auto t) {
      unrolled<kStripes>([&](auto s) {
        B::template add<C, i>(codes[s], input[t], x.sides[t], scales[s], sums[t][s]);
      });
    });
  });
  unrolled<kTokens>([&](auto t) {
    unrolled<kStripes>([&](auto s) {
      Rows<B> value;
      B::template value<C>(sums[t][s], x.sides[t], scales[s], value);
      each(t, s, value);
    });
  });
}

template <typename B, size_t kTokens, size_t kStripes>
using TileRows = Rows<B>[kTokens][kStripes];

template <size_t kTokens, size_t kStripes, typename Each>
[[gnu::always_inline]] inline void visit_tile(Each each) {
  unrolled<kTokens>([&](auto t) { unrolled<kStripes>([&](auto s) { each(t, s); }); });
}

// Adds one block of 32 columns to the totals.
template <typename B, typename C, size_t kTokens, size_t kStripes>
[[gnu::always_inline]] inline void small_block_tile(const BlockTile<B>& x,
                                                    const BlockPanel<B>& panel,
                                                    const PanelScales<B>& extra,
                                                    TileRows<B, kTokens, kStripes>& totals) {
  using V = typename B::V;
  visit_values<B, C, kTokens, kStripes>(x, panel, extra, [&](auto t, auto s, const Rows<B>& value) {
    Rows<B> scale, minimum;
    load_floats<B>(panel.scale[s], scale);
    if constexpr (C::kMinimum) load_floats<B>(extra.minimum[s], minimum);
    add_small_block<B, C>(value, x.scales[t], x.minimum_factors[t][0], scale, minimum,
                          totals[t][s]);
    unrolled<kRowVectors<B>>([&](auto v) { totals[t][s][v] = V::in_turn(totals[t][s][v]); });
  });
}

// Adds one block of 256 columns to the totals.
template <typename B, typename C, size_t kTokens, size_t kStripes>
[[gnu::always_inline]] inline void large_block_tile(const BlockTile<B>* x,
                                                    const BlockPanel<B>* panel,
                                                    const PanelScales<B>* extra,
                                                    TileRows<B, kTokens, kStripes>& totals) {
  using V = typename B::V;
  TileRows<B, kTokens, kStripes> sums;
  visit_tile<kTokens, kStripes>([&](auto t, auto s) { set_zero<B>(sums[t][s]); });
  for (size_t p = 0; p < C::kParts; ++p) {
    visit_values<B, C, kTokens, kStripes>(
        x[p], panel[p], extra[p], [&](auto t, auto s, const Rows<B>& value) {
          add_product<B>(value, V::broadcast(x[p].scales[t]), sums[t][s]);
          unrolled<kRowVectors<B>>([&](auto v) { sums[t][s][v] = V::in_turn(sums[t][s][v]); });
        });
  }
  visit_tile<kTokens, kStripes>([&](auto t, auto s) {
    Rows<B> scale;
    load_floats<B>(panel->scale[s], scale);
    unrolled<kRowVectors<B>>(
        [&](auto v) { totals[t][s][v] = V::fma(scale[v], sums[t][s][v], totals[t][s][v]); });
    if constexpr (C::kMinimum) set_zero<B>(sums[t][s]);
  });
  if constexpr (C::kMinimum) {
    for (size_t p = 0; p < C::kParts; ++p) {
      unrolled<kMinima<C>>([&](auto m) {
        Rows<B> minima[kStripes];
        unrolled<kStripes>([&](auto s) { load_floats<B>(extra[p].minima[m][s], minima[s]); });
        visit_tile<kTokens, kStripes>([&](auto t, auto s) {
          add_product<B>(minima[s], V::broadcast(x[p].minimum_factors[t][m]), sums[t][s]);
        });
      });
    }
    visit_tile<kTokens, kStripes>([&](auto t, auto s) {
      Rows<B> minimum;
      load_floats<B>(extra->minimum[s], minimum);
      unrolled<kRowVectors<B>>(
          [&](auto v) { totals[t][s][v] = V::fma(minimum[v], sums[t][s][v], totals[t][s][v]); });
    });
  }
}

// y += the product of `parts` parts, or = it.
template <typename B, typename C, size_t kTokens, size_t kStripes>
HEARTH_FLATTEN void block_tile(const BlockTile<B>* x, const BlockPanel<B>* panel,
                               const PanelScales<B>* extra, size_t parts, bool add, float* y,
                               size_t y_stride, size_t rows) {
  using V = typename B::V;
  TileRows<B, kTokens, kStripes> totals;
  visit_tile<kTokens, kStripes>([&](auto t, auto s) {
    const size_t row = s * kStripeRows<B>;
    if (add)
      load_rows<V>(y + t * y_stride + row, rows - row, totals[t][s]);
    else
      set_zero<B>(totals[t][s]);
  });
  for (size_t b = 0; b < parts; b += C::kParts) {
    if constexpr (C::kParts > 1)
      large_block_tile<B, C, kTokens, kStripes>(x + b, panel + b, extra + b, totals);
    else
      small_block_tile<B, C, kTokens, kStripes>(x[b], panel[b], extra[b], totals);
  }
  visit_tile<kTokens, kStripes>([&](auto t, auto s) {
    const size_t row = s * kStripeRows<B>;
    store_rows<V>(y + t * y_stride + row, totals[t][s], rows - row);
  });
}

// Parts [begin, begin + parts) of kStripes stripes, for a slab of tokens.
template <typename B, typename C, size_t kStripes>
void block_run(const MatmulArgs& a, size_t stripe, size_t begin, size_t parts,
               const BlockSlab<B>& slab, BlockScratch<B>& scratch) {
  constexpr size_t kBytes = kGroupBlockBytes<C>;
  const size_t group = stripe * B::kGroups;
  const uint8_t* weights = a.weights + group * a.group_bytes + begin / C::kParts * kBytes;
  unrolled<kStripes>([&](auto s) {
    const size_t first = s * B::kGroups;
    At<B> block = B::at(weights + first * a.group_bytes, a.group_bytes, a.groups - group - first);
    for (size_t b = 0; b < parts; b += C::kParts, block = block + kBytes)
      unpack_block<B, C>(block, s, scratch.panel + b, scratch.scales + b);
  });
  const size_t row = group * kGroupRows;
  Prefetcher<kStripes * B::kGroups> next(weights, a.group_bytes, parts / C::kParts * kBytes,
                                         slab.tiles());
  for (size_t tile = 0; tile < slab.tiles(); ++tile) {
    next.advance();
    float* y = a.y + (slab.first + tile * B::kTileTokens) * a.y_stride + row;
    with_constant<B::kTileTokens>(slab.tile_tokens(tile), [&](auto tokens) {
      block_tile<B, C, tokens, kStripes>(scratch.x[tile], scratch.panel, scratch.scales, parts,
                                         begin > 0, y, a.y_stride, a.rows - row);
    });
  }
}

template <typename B, typename C>
void copy_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t begin, size_t parts,
                 const BlockSlab<B>& slab, BlockScratch<B>& scratch) {
  for (size_t t = 0; t < slab.tokens; ++t) {
    const size_t at = (slab.first + t) * (a.columns / kBlock) + begin;
    const size_t in_tile = t % B::kTileTokens;
    for (size_t b = 0; b < parts; ++b) {
      BlockTile<B>& to = scratch.x[t / B::kTileTokens][b];
      std::memcpy(to.q[in_tile], x.q + (at + b) * kBlock, kBlock);
      to.scales[in_tile] = x.scales[at + b];
      to.sides[in_tile] = B::template side<C>(x.sums[at + b]);
      minimum_factors<C>(x.scales[at + b], x.sums[at + b], to.minimum_factors[in_tile]);
    }
  }
}

template <typename B>
size_t stripes_of(const MatmulArgs& a) {
  return (a.groups + B::kGroups - 1) / B::kGroups;
}

template <typename B, typename C>
void many_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  static_assert(B::kRunParts % C::kParts == 0);
  auto& scratch = *static_cast<BlockScratch<B>*>(a.scratch);
  const size_t all = a.columns / kBlock;
  visit_slabs<B::kTileTokens>(a.tokens, [&](const BlockSlab<B>& slab) {
    for (size_t begin = 0; begin < all; begin += B::kRunParts) {
      const size_t parts = smaller(B::kRunParts, all - begin);
      copy_blocks<B, C>(a, x, begin, parts, slab, scratch);
      visit_groups<B::kTileStripes>(0, stripes_of<B>(a), [&](size_t s, auto stripes) {
        block_run<B, C, stripes>(a, s, begin, parts, slab, scratch);
      });
    }
  });
}

// The weights of a stripe stay in the first-level cache while all tokens pass over them.
template <typename B, typename C>
void matmul_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  if constexpr (B::kPanelTokens > 0) {
    if (a.tokens >= B::kPanelTokens) return many_blocks<B, C>(a, x);
  }
  for (size_t g = 0; g < a.groups; g += B::kGroups) {
    visit_tiles(typename B::Tiles(), a.tokens,
                [&](size_t t, auto tokens) { few_blocks<B, C, tokens>(a, x, t, g, a.groups - g); });
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
