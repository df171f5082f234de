// The matrix products of q80 and q40 weights with int8 activations. The sum of a block is an exact
// integer; blocks are then added in order, by one fused multiply-add each, as in the scalar twin.
//
// The instructions that multiply int8 differ most between CPUs. So the sums of a block have a trait
// of their own, `D`, for each instruction set and type (blocks.h).
//
//   kBlockBytes: of eight rows, scales and then codes.
//   kOffset: what unsigned codes are too large by, 0 or a power of two.
//   kSteps, kStepBytes: the parts of a block, and their size.
//   Tiles: the numbers of tokens that a tile may have, the largest first.
//   Weights, load: the codes of a part.
//   Input, input: the activations of one token in a block.
//   Sums, start: a block's sums of eight rows, possibly over several lanes for each.
//   add<kStep>: adds the products of one part.
//   total: the sums as vectors of int32, less the offset if `start` has not taken it off.
//   kPanelTokens: from how many tokens on weights are unpacked to a panel; 0 for never.
//
// The offset is kOffset times the sum of the activations. Traits with a panel also have:
//
//   Codes, load_codes, store_codes: four columns of eight rows, one byte each.
//   unpack: stores the codes of a part.
//   quad: four activations in each row.
//   add_codes: adds the products of both.
#pragma once

#include "products.h"

namespace hearth {
namespace {

// The sums of `whole`, scaled and added to those of earlier blocks.
template <typename V>
[[gnu::always_inline]] inline typename V::Float add_block(typename V::Int whole,
                                                          typename V::Float scales, float x_scale,
                                                          typename V::Float sums) {
  return V::fma(V::from_int(whole), V::mul(scales, V::broadcast(x_scale)), sums);
}

// One token reads on in its own group; several load the next group while they compute with this
// one.
template <typename V, typename D, size_t kTokens>
void prefetch_block(const MatmulArgs& a, const uint8_t* block, size_t token, size_t b) {
  if constexpr (kTokens == 1) {
    constexpr size_t kWhole = D::kBlockBytes / kLine * kLine, kRest = D::kBlockBytes - kWhole;
    for (size_t at = 0; at < kWhole; at += kLine) prefetch(block + V::kAhead + at);
    // The rests of several blocks make a line more.
    constexpr size_t kEvery = kLine / kRest;
    if (b % kEvery == kEvery - 1) prefetch(block + V::kAhead + kWhole);
  } else {
    const size_t line = (token / kTokens * (a.columns / kBlock) + b) * kLine;
    if (line < a.group_bytes) prefetch(block - b * D::kBlockBytes + a.group_bytes + line);
  }
}

// A few tokens by one group, straight from the weights.
template <typename V, typename D, size_t kTokens>
void few_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t token, size_t group) {
  using Float = typename V::Float;
  constexpr size_t kVectors = kGroupVectors<V>;
  const size_t blocks = a.columns / kBlock;
  Float sums[kTokens][kVectors];
  unrolled<kTokens>([&](auto t) { unrolled<kVectors>([&](auto v) { sums[t][v] = V::zero(); }); });
  const uint8_t* block = a.weights + group * a.group_bytes;
  const int8_t* q = x.q + token * a.columns;
  for (size_t b = 0; b < blocks; ++b, block += D::kBlockBytes, q += kBlock) {
    if constexpr (V::kAhead > 0) prefetch_block<V, D, kTokens>(a, block, token, b);
    const auto offset = [&](size_t t) {
      if constexpr (D::kOffset == 0)
        return V::zero_int();
      else
        return V::template broadcast_times<D::kOffset>(x.sums[(token + t) * blocks + b]);
    };
    typename D::Input input[kTokens];
    typename D::Sums block_sums[kTokens];
    unrolled<kTokens>([&](auto t) {
      input[t] = D::input(q + t * a.columns);
      D::start(offset(t), block_sums[t]);
    });
    unrolled<D::kSteps>([&](auto i) {
      typename D::Weights weights;
      D::load(block + kScaleBytes + D::kStepBytes * i, weights);
      unrolled<kTokens>([&](auto t) { D::template add<i>(weights, input[t], block_sums[t]); });
    });
    Float scales[kVectors];
    unrolled<kVectors>([&](auto v) {
      scales[v] = V::load(reinterpret_cast<const uint16_t*>(block) + V::kWidth * v);
    });
    unrolled<kTokens>([&](auto t) {
      typename V::Int whole[kVectors];
      D::total(block_sums[t], offset(t), whole);
      const float x_scale = x.scales[(token + t) * blocks + b];
      unrolled<kVectors>(
          [&](auto v) { sums[t][v] = add_block<V>(whole[v], scales[v], x_scale, sums[t][v]); });
    });
  }
  const size_t row = group * kGroupRows;
  unrolled<kTokens>(
      [&](auto t) { store_rows<V>(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row); });
}

// -- Many tokens (see products.h)

constexpr size_t kPanelGroups = 2;
// The unpacked weights of a run take 9 KiB of the first-level cache, the activations of a tile 3.
constexpr size_t kRunBlocks = 16;

// One block of a tile's tokens.
struct BlockTile {
  int8_t q[kTileTokens][kBlock];
  float scales[kTileTokens];
  int32_t offsets[kTileTokens];
};

// One block of a few groups: four columns of each row, then the next four; and the scales.
struct alignas(kLine) BlockPanel {
  uint8_t codes[kBlock / 4][kPanelGroups][4 * kGroupRows];
  float scales[kPanelGroups][kGroupRows];
};

struct BlockScratch {
  BlockTile x[kSlabTiles][kRunBlocks];
  BlockPanel panel[kRunBlocks];
};

template <typename V, typename D, size_t kGroups>
void unpack_block(const uint8_t* from, size_t group_bytes, BlockPanel& to) {
  unrolled<kGroups>([&](auto g) {
    const uint8_t* block = from + g * group_bytes;
    unrolled<kGroupVectors<V>>([&](auto v) {
      V::store(to.scales[g] + V::kWidth * v,
               V::load(reinterpret_cast<const uint16_t*>(block) + V::kWidth * v));
    });
    unrolled<D::kSteps>([&](auto i) {
      typename D::Weights weights;
      D::load(block + kScaleBytes + D::kStepBytes * i, weights);
      D::unpack(weights, [&](size_t quad, typename D::Codes codes) {
        D::store_codes(to.codes[i + quad][g], codes);
      });
    });
  });
}

// y += the product of `blocks` blocks, or = it. The integer sums fill the registers; the sums in
// f32 wait in memory.
template <typename V, typename D, size_t kTokens, size_t kGroups>
void block_tile(const BlockTile* x, const BlockPanel* panel, size_t blocks, bool add, float* y,
                size_t y_stride, size_t rows) {
  using Float = typename V::Float;
  constexpr size_t kVectors = kGroupVectors<V>;
  Float sums[kTokens][kGroups][kVectors];
  unrolled<kTokens>([&](auto t) {
    unrolled<kGroups>([&](auto g) {
      const size_t row = g * kGroupRows;
      if (add) {
        load_rows<V>(y + t * y_stride + row, rows - row, sums[t][g]);
      } else {
        unrolled<kVectors>([&](auto v) { sums[t][g][v] = V::zero(); });
      }
    });
  });
  for (size_t b = 0; b < blocks; ++b, ++x, ++panel) {
    typename D::Sums block_sums[kTokens][kGroups];
    unrolled<kTokens>([&](auto t) {
      unrolled<kGroups>(
          [&](auto g) { D::start(V::broadcast_int(x->offsets[t]), block_sums[t][g]); });
    });
    unrolled<kBlock / 4>([&](auto i) {
      typename D::Codes codes[kGroups];
      unrolled<kGroups>([&](auto g) { codes[g] = D::load_codes(panel->codes[i][g]); });
      unrolled<kTokens>([&](auto t) {
        const typename D::Codes four = D::quad(x->q[t] + 4 * i);
        unrolled<kGroups>([&](auto g) { D::add_codes(codes[g], four, block_sums[t][g]); });
      });
    });
    unrolled<kTokens>([&](auto t) {
      unrolled<kGroups>([&](auto g) {
        typename V::Int whole[kVectors];
        D::total(block_sums[t][g], V::broadcast_int(x->offsets[t]), whole);
        unrolled<kVectors>([&](auto v) {
          const Float scales = V::load(panel->scales[g] + V::kWidth * v);
          sums[t][g][v] = V::in_turn(add_block<V>(whole[v], scales, x->scales[t], sums[t][g][v]));
        });
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

// Blocks [begin, begin + blocks) of kGroups groups, for a slab of tokens.
template <typename V, typename D, size_t kGroups>
void block_run(const MatmulArgs& a, size_t group, size_t begin, size_t blocks, const Slab& slab,
               BlockScratch& scratch) {
  const uint8_t* weights = a.weights + group * a.group_bytes + begin * D::kBlockBytes;
  for (size_t b = 0; b < blocks; ++b)
    unpack_block<V, D, kGroups>(weights + b * D::kBlockBytes, a.group_bytes, scratch.panel[b]);
  const size_t row = group * kGroupRows;
  Prefetcher<kGroups> next(weights, a.group_bytes, blocks * D::kBlockBytes, slab.tiles());
  for (size_t tile = 0; tile < slab.tiles(); ++tile) {
    next.advance();
    float* y = a.y + (slab.first + tile * kTileTokens) * a.y_stride + row;
    with_constant<kTileTokens>(slab.tile_tokens(tile), [&](auto tokens) {
      block_tile<V, D, tokens, kGroups>(scratch.x[tile], scratch.panel, blocks, begin > 0, y,
                                        a.y_stride, a.rows - row);
    });
  }
}

template <typename D>
void copy_blocks(const MatmulArgs& a, const QuantizedRows& x, size_t begin, size_t blocks,
                 const Slab& slab, BlockScratch& scratch) {
  for (size_t t = 0; t < slab.tokens; ++t) {
    const size_t at = (slab.first + t) * (a.columns / kBlock) + begin, in_tile = t % kTileTokens;
    for (size_t b = 0; b < blocks; ++b) {
      BlockTile& to = scratch.x[t / kTileTokens][b];
      std::memcpy(to.q[in_tile], x.q + (at + b) * kBlock, kBlock);
      to.scales[in_tile] = x.scales[at + b];
      to.offsets[in_tile] = D::kOffset * x.sums[at + b];
    }
  }
}

template <typename V, typename D>
void many_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  auto& scratch = *static_cast<BlockScratch*>(a.scratch);
  const size_t all = a.columns / kBlock;
  visit_slabs(a.tokens, [&](const Slab& slab) {
    for (size_t begin = 0; begin < all; begin += kRunBlocks) {
      const size_t blocks = smaller(kRunBlocks, all - begin);
      copy_blocks<D>(a, x, begin, blocks, slab, scratch);
      visit_groups<kPanelGroups>(0, a.groups, [&](size_t g, auto groups) {
        block_run<V, D, groups>(a, g, begin, blocks, slab, scratch);
      });
    }
  });
}

// The weights of a group stay in the first-level cache while all tokens pass over them.
template <typename V, typename D>
void matmul_blocks(const MatmulArgs& a, const QuantizedRows& x) {
  if constexpr (D::kPanelTokens > 0) {
    if (a.tokens >= D::kPanelTokens) return many_blocks<V, D>(a, x);
  }
  for (size_t g = 0; g < a.groups; ++g) {
    visit_tiles(typename D::Tiles(), a.tokens,
                [&](size_t t, auto tokens) { few_blocks<V, D, tokens>(a, x, t, g); });
  }
}

}  // namespace
}  // namespace hearth
