// AVX2: the matrix products of many tokens, which arithmetic bounds. Run by run of columns, and all
// within a core's own caches (the order of loops is that of Goto and van de Geijn: Anatomy of
// high-performance matrix multiplication, 2008):
//   - the activations of up to 128 tokens are copied beside each other, tile by tile: rows apart by
//     a power of two would fall into the same few places of a cache;
//   - the weights of two or three groups are unpacked once for all tokens, nibbles to bytes and f16
//     to f32;
//   - a tile of up to four tokens by those groups keeps its sums in registers: each load of
//     activations serves all groups, each load of weights all tokens. (Arrays stay in registers
//     only where all loops over them are unrolled, hence the pragmas.)
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

namespace hearth {
namespace {

constexpr size_t kTileTokens = 4;
constexpr size_t kSlabTokens = 128;
constexpr size_t kSlabTiles = (kSlabTokens + kTileTokens - 1) / kTileTokens;

// The tokens of a slab, [first, first + tokens) of the product, in tiles.
struct Tiles {
  size_t first, tokens;

  size_t count() const { return (tokens + kTileTokens - 1) / kTileTokens; }
  size_t size(size_t tile) const { return std::min(kTileTokens, tokens - tile * kTileTokens); }
};

// run(n), n being a constant for the compiler.
template <size_t kMost, typename Run>
void with_constant(size_t n, Run run) {
  if (n == kMost) return run(std::integral_constant<size_t, kMost>());
  if constexpr (kMost > 1) with_constant<kMost - 1>(n, run);
}

// each(first group, constant number of groups) for all groups from begin to end, kMost at a time
// and then what is left.
template <size_t kMost, typename Each>
void visit_groups(size_t begin, size_t end, Each each) {
  for (size_t g = begin; g < end; g += kMost)
    with_constant<kMost>(std::min(kMost, end - g), [&](auto groups) { each(g, groups); });
}

// Weights that are unpacked next come from memory while tiles of these are computed: a share of
// them is asked for with each tile.
template <size_t kGroups>
class Ahead {
 public:
  Ahead(const uint8_t* weights, size_t group_bytes, size_t bytes, size_t tiles)
      : next_(weights + kGroups * group_bytes),
        group_bytes_(group_bytes),
        share_((bytes + tiles * kLine - 1) / (tiles * kLine) * kLine) {}

  void ask() {
    for (size_t at = 0; at < share_; at += kLine) {
      for (size_t g = 0; g < kGroups; ++g) prefetch(next_ + g * group_bytes_ + at);
    }
    next_ += share_;
  }

 private:
  const uint8_t* next_;
  size_t group_bytes_, share_;
};

// -- f32 and f16
// -----------------------------------------------------------------------------------

// Twelve sums in registers: four by three want seven loads for twelve fused multiply-adds.
constexpr size_t kFloatGroups = 3;
// A run's widened weights take 12 KiB of the first-level cache, a tile's activations 2.
constexpr size_t kRunColumns = 128;
// Sums of so many groups (144 KiB) stay in the second-level cache from run to run.
constexpr size_t kBatchGroups = 6 * kFloatGroups;

struct FloatTile {
  float x[kTileTokens][kRunColumns];
};

template <size_t kGroups>
struct FloatPanel {
  // Even columns, then odd ones.
  alignas(kLine) float columns[2][kRunColumns / 2][kGroups][kGroupRows];
};

// What a token has been given so far of even and of odd columns, which the scalar twin sums apart.
struct alignas(kLine) Part {
  float sums[2][kFloatGroups][kGroupRows];
};

// Columns of one parity: with both at once, a tile would have to be half as large.
template <size_t kTokens, size_t kGroups>
void float_tile(const FloatTile& tile, const FloatPanel<kGroups>& panel, size_t parity,
                size_t columns, Part* parts) {
  __m256 sums[kTokens][kGroups];
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t g = 0; g < kGroups; ++g) sums[t][g] = _mm256_load_ps(parts[t].sums[parity][g]);
  }
#pragma GCC unroll 4
  for (size_t c = 0; c < columns; ++c) {
    __m256 weights[kGroups];
#pragma GCC unroll 8
    for (size_t g = 0; g < kGroups; ++g) weights[g] = _mm256_load_ps(panel.columns[parity][c][g]);
#pragma GCC unroll 8
    for (size_t t = 0; t < kTokens; ++t) {
      const __m256 x = _mm256_broadcast_ss(&tile.x[t][2 * c + parity]);
#pragma GCC unroll 8
      for (size_t g = 0; g < kGroups; ++g) sums[t][g] = _mm256_fmadd_ps(weights[g], x, sums[t][g]);
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t g = 0; g < kGroups; ++g) _mm256_store_ps(parts[t].sums[parity][g], sums[t][g]);
  }
}

// Columns [begin, begin + columns) of kGroups groups, for a slab of tokens.
template <Type kType, size_t kGroups>
void float_run(const MatmulArgs& a, size_t group, size_t begin, size_t columns, const Tiles& tiles,
               const FloatTile* x, Part* parts) {
  FloatPanel<kGroups> panel;
  const uint8_t* weights = a.weights + group * a.group_bytes + begin * kColumnBytes<kType>;
  for (size_t c = 0; c < columns; ++c) {
    for (size_t g = 0; g < kGroups; ++g) {
      const uint8_t* at = weights + g * a.group_bytes + c * kColumnBytes<kType>;
      _mm256_store_ps(panel.columns[c % 2][c / 2][g], load_column<kType>(at));
    }
  }
  Ahead<kGroups> ahead(weights, a.group_bytes, columns * kColumnBytes<kType>, tiles.count());
  for (size_t tile = 0; tile < tiles.count(); ++tile) {
    ahead.ask();
    Part* to = parts + tile * kTileTokens;
    with_constant<kTileTokens>(tiles.size(tile), [&](auto size) {
      float_tile<size, kGroups>(x[tile], panel, 0, (columns + 1) / 2, to);
      float_tile<size, kGroups>(x[tile], panel, 1, columns / 2, to);
    });
  }
}

// A batch of groups, for a slab of tokens.
template <Type kType>
void float_batch(const MatmulArgs& a, size_t first, size_t last, const Tiles& tiles) {
  FloatTile x[kSlabTiles];
  Part parts[kBatchGroups / kFloatGroups][kSlabTokens];
  for (auto& of : parts) std::memset(of, 0, tiles.tokens * sizeof(Part));
  for (size_t begin = 0; begin < a.columns; begin += kRunColumns) {
    const size_t columns = std::min(kRunColumns, a.columns - begin);
    for (size_t t = 0; t < tiles.tokens; ++t) {
      std::memcpy(x[t / kTileTokens].x[t % kTileTokens],
                  a.x + (tiles.first + t) * a.columns + begin, columns * sizeof(float));
    }
    visit_groups<kFloatGroups>(first, last, [&](size_t g, auto groups) {
      float_run<kType, groups>(a, g, begin, columns, tiles, x, parts[(g - first) / kFloatGroups]);
    });
  }
  for (size_t g = first; g < last; ++g) {
    const size_t at = (g - first) / kFloatGroups, in = (g - first) % kFloatGroups;
    const size_t row = g * kGroupRows;
    for (size_t t = 0; t < tiles.tokens; ++t) {
      const auto& sums = parts[at][t].sums;
      store_rows(a.y + (tiles.first + t) * a.y_stride + row,
                 _mm256_add_ps(_mm256_load_ps(sums[0][in]), _mm256_load_ps(sums[1][in])),
                 a.rows - row);
    }
  }
}

template <Type kType>
void many_floats(const MatmulArgs& a) {
  for (size_t first = 0; first < a.tokens; first += kSlabTokens) {
    const Tiles tiles = {first, std::min(kSlabTokens, a.tokens - first)};
    for (size_t g = 0; g < a.groups; g += kBatchGroups)
      float_batch<kType>(a, g, std::min(g + kBatchGroups, a.groups), tiles);
  }
}

// -- q40
// -----------------------------------------------------------------------------------

constexpr size_t kBlockGroups = 2;
// A run's unpacked weights take 9 KiB of the first-level cache, a tile's activations 3.
constexpr size_t kRunBlocks = 16;

// One block of a tile's tokens.
struct BlockTile {
  int8_t q[kTileTokens][kBlock];
  float scales[kTileTokens];
  int32_t sums[kTileTokens];
};

// One block of kGroups groups: nibbles 4 i .. 4 i + 3 of each row, and the scales.
template <size_t kGroups>
struct alignas(kLine) BlockPanel {
  uint8_t nibbles[kBlock / 4][kGroups][4 * kGroupRows];
  float scales[kGroups][kGroupRows];
};

template <size_t kGroups>
void unpack_block(const uint8_t* from, size_t group_bytes, BlockPanel<kGroups>& to) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (size_t g = 0; g < kGroups; ++g, from += group_bytes) {
    _mm256_store_ps(to.scales[g], load_halves(from));
    for (size_t i = 0; i < 4; ++i) {
      const __m256i bytes = load32(from + 2 * kGroupRows + 32 * i);
      store32(to.nibbles[i][g], _mm256_and_si256(bytes, mask));
      store32(to.nibbles[i + 4][g], _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask));
    }
  }
}

// y += the product of `blocks` blocks, or = it. As for few tokens, the sums of pairs stay within
// int16 over a block; they fill the registers, and the sums in f32 wait in memory.
template <size_t kTokens, size_t kGroups>
void block_tile(const BlockTile* x, const BlockPanel<kGroups>* panel, size_t blocks, bool add,
                float* y, size_t y_stride, size_t rows) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kTokens][kGroups];
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t g = 0; g < kGroups; ++g) {
      const size_t row = g * kGroupRows;
      sums[t][g] = add ? load_rows(y + t * y_stride + row, rows - row) : _mm256_setzero_ps();
    }
  }
  for (size_t b = 0; b < blocks; ++b, ++x, ++panel) {
    __m256i pairs[kTokens][kGroups];
#pragma GCC unroll 8
    for (size_t i = 0; i < kBlock / 4; ++i) {
      __m256i weights[kGroups];
#pragma GCC unroll 8
      for (size_t g = 0; g < kGroups; ++g) weights[g] = load32(panel->nibbles[i][g]);
#pragma GCC unroll 8
      for (size_t t = 0; t < kTokens; ++t) {
        const __m256i four = broadcast4(x->q[t] + 4 * i);
#pragma GCC unroll 8
        for (size_t g = 0; g < kGroups; ++g) {
          const __m256i product = _mm256_maddubs_epi16(weights[g], four);
          pairs[t][g] = in_turn(i == 0 ? product : _mm256_add_epi16(pairs[t][g], product));
        }
      }
    }
#pragma GCC unroll 8
    for (size_t t = 0; t < kTokens; ++t) {
      const __m256i offset = _mm256_set1_epi32(x->sums[t]);
      const __m256 scale = _mm256_set1_ps(x->scales[t]);
#pragma GCC unroll 8
      for (size_t g = 0; g < kGroups; ++g) {
        const __m256i whole = _mm256_sub_epi32(_mm256_madd_epi16(pairs[t][g], ones), offset);
        sums[t][g] = in_turn(_mm256_fmadd_ps(_mm256_cvtepi32_ps(whole),
                                             _mm256_mul_ps(_mm256_load_ps(panel->scales[g]), scale),
                                             sums[t][g]));
      }
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t g = 0; g < kGroups; ++g)
      store_rows(y + t * y_stride + g * kGroupRows, sums[t][g], rows - g * kGroupRows);
  }
}

// Blocks [begin, begin + blocks) of kGroups groups, for a slab of tokens.
template <size_t kGroups>
void block_run(const MatmulArgs& a, size_t group, size_t begin, size_t blocks, const Tiles& tiles,
               const BlockTile (*x)[kRunBlocks]) {
  BlockPanel<kGroups> panel[kRunBlocks];
  const uint8_t* weights = a.weights + group * a.group_bytes + begin * kQ40GroupBlock;
  for (size_t b = 0; b < blocks; ++b)
    unpack_block(weights + b * kQ40GroupBlock, a.group_bytes, panel[b]);
  const size_t row = group * kGroupRows;
  Ahead<kGroups> ahead(weights, a.group_bytes, blocks * kQ40GroupBlock, tiles.count());
  for (size_t tile = 0; tile < tiles.count(); ++tile) {
    ahead.ask();
    float* y = a.y + (tiles.first + tile * kTileTokens) * a.y_stride + row;
    with_constant<kTileTokens>(tiles.size(tile), [&](auto size) {
      block_tile<size, kGroups>(x[tile], panel, blocks, begin > 0, y, a.y_stride, a.rows - row);
    });
  }
}

void copy_blocks(const MatmulArgs& a, size_t begin, size_t blocks, const Tiles& tiles,
                 BlockTile (*x)[kRunBlocks]) {
  for (size_t t = 0; t < tiles.tokens; ++t) {
    const size_t at = (tiles.first + t) * (a.columns / kBlock) + begin, in = t % kTileTokens;
    for (size_t b = 0; b < blocks; ++b) {
      BlockTile& to = x[t / kTileTokens][b];
      std::memcpy(to.q[in], a.xq + (at + b) * kBlock, kBlock);
      to.scales[in] = a.x_scales[at + b];
      to.sums[in] = a.x_sums[at + b];
    }
  }
}

}  // namespace

namespace avx2 {

void many_f32(const MatmulArgs& a) { many_floats<Type::f32>(a); }
void many_f16(const MatmulArgs& a) { many_floats<Type::f16>(a); }

void many_q40(const MatmulArgs& a) {
  const size_t all = a.columns / kBlock;
  BlockTile x[kSlabTiles][kRunBlocks];
  for (size_t first = 0; first < a.tokens; first += kSlabTokens) {
    const Tiles tiles = {first, std::min(kSlabTokens, a.tokens - first)};
    for (size_t begin = 0; begin < all; begin += kRunBlocks) {
      const size_t blocks = std::min(kRunBlocks, all - begin);
      copy_blocks(a, begin, blocks, tiles, x);
      visit_groups<kBlockGroups>(0, a.groups, [&](size_t g, auto groups) {
        block_run<groups>(a, g, begin, blocks, tiles, x);
      });
    }
  }
}

}  // namespace avx2
}  // namespace hearth
