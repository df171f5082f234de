// AVX2: the matrix products, of one token and of a few (of more: many.cpp). For one
// they are bound by memory, and ask for weights ahead of time, because the blocks in flight of a
// core hide less of memory's latency than there is.
#include "products.h"

#include <algorithm>
#include <cstring>

namespace hearth {
namespace {

// From so many tokens on it pays to unpack weights to the first-level cache before they are used.
constexpr size_t kManyFloats = 4;
constexpr size_t kManyBlocks = 7;
// How far ahead of a token's product weights are asked for, over all groups that it reads at once:
// what memory delivers within its latency, which a shorter hint leaves to be waited for. Measured
// on Zen 5: 1.5 KiB gives 80 % of what 8 KiB does, and 6 to 12 KiB are flat.
constexpr size_t kAhead = 8192;

// -- f32 and f16
// -----------------------------------------------------------------------------------

// Two groups at once: for one token their four chains of additions hide the latency; for three, six
// fused multiply-adds share five loads.
constexpr size_t kTileGroups = 2;

// kTokens x kGroups sums of eight rows, of even and of odd columns, as in the scalar twin.
template <size_t kTokens, size_t kGroups>
struct Sums {
  __m256 even[kTokens][kGroups], odd[kTokens][kGroups];

  template <typename Each>
  void visit(Each each) {
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t g = 0; g < kGroups; ++g) each(t, g, even[t][g], odd[t][g]);
    }
  }

  // Columns [0, columns) of activations x (a token every `stride`). load(g, c): one column of group
  // g. Column by column: with both parities at once, a tile of 3 x 2 has no registers left.
  template <typename Load>
  void add(const float* x, size_t stride, size_t columns, Load load) {
    size_t c = 0;
    for (; c + 2 <= columns; c += 2) {
      add_column(x + c, stride, even, [&](size_t g) { return load(g, c); });
      add_column(x + c + 1, stride, odd, [&](size_t g) { return load(g, c + 1); });
    }
    if (c < columns) add_column(x + c, stride, even, [&](size_t g) { return load(g, c); });
  }

  template <typename Load>
  static void add_column(const float* x, size_t stride, __m256 (&sums)[kTokens][kGroups],
                         Load load) {
    __m256 column[kGroups];
    for (size_t g = 0; g < kGroups; ++g) column[g] = load(g);
    for (size_t t = 0; t < kTokens; ++t) {
      const __m256 value = _mm256_broadcast_ss(x + t * stride);
      for (size_t g = 0; g < kGroups; ++g)
        sums[t][g] = _mm256_fmadd_ps(column[g], value, sums[t][g]);
    }
  }
};

// A few tokens: straight from the weights.
template <Type kType, size_t kTokens, size_t kGroups>
void few_floats(const MatmulArgs& a, size_t group) {
  Sums<kTokens, kGroups> sums;
  sums.visit([](size_t, size_t, __m256& even, __m256& odd) { even = odd = _mm256_setzero_ps(); });
  const uint8_t* w = a.weights + group * a.group_bytes;
  sums.add(a.x, a.columns, a.columns, [&](size_t g, size_t c) {
    const uint8_t* at = w + g * a.group_bytes + c * kColumnBytes<kType>;
    if (c % (kLine / kColumnBytes<kType> * 2) == 0) {
      prefetch(at + kAhead / kGroups);
      prefetch(at + kAhead / kGroups + kLine);
    }
    return load_column<kType>(at);
  });
  sums.visit([&](size_t t, size_t g, __m256 even, __m256 odd) {
    const size_t row = (group + g) * kGroupRows;
    store_rows(a.y + t * a.y_stride + row, _mm256_add_ps(even, odd), a.rows - row);
  });
}

template <Type kType, size_t kGroups>
void float_groups(const MatmulArgs& a, size_t group) {
  if (a.tokens == 1) return few_floats<kType, 1, kGroups>(a, group);
  if (a.tokens == 2) return few_floats<kType, 2, kGroups>(a, group);
  static_assert(kManyFloats == 4);
  few_floats<kType, 3, kGroups>(a, group);
}

template <Type kType>
void matmul_floats(const MatmulArgs& a) {
  size_t g = 0;
  for (; g + kTileGroups <= a.groups; g += kTileGroups) float_groups<kType, kTileGroups>(a, g);
  for (; g < a.groups; ++g) float_groups<kType, 1>(a, g);
}

// -- q40 and q80
// -----------------------------------------------------------------------------------

// One token reads on in its own group; many ask for the next group while they compute with this
// one.
template <size_t kTokens, size_t kBlockBytes>
void prefetch_block(const MatmulArgs& a, const uint8_t* block, size_t token, size_t b) {
  if constexpr (kTokens == 1) {
    for (size_t at = 0; at < kBlockBytes / kLine * kLine; at += kLine)
      prefetch(block + kAhead + at);
    // What is left of several blocks makes a line more.
    constexpr size_t kEvery = kLine / (kBlockBytes % kLine);
    if (b % kEvery == kEvery - 1) prefetch(block + kAhead + kBlockBytes / kLine * kLine);
  } else {
    const size_t line = (token / kTokens * (a.columns / kBlock) + b) * kLine;
    if (line < a.group_bytes) prefetch(block - b * kBlockBytes + a.group_bytes + line);
  }
}

// Four bits: nibbles stay unsigned, the offset of 8 is taken off once per block by x_sums. The sums
// of pairs stay within int16 over a whole block: 8 additions x 2 x 15 x 127 = 30,480. Nibbles are
// unpacked a quarter of a block at a time and used for all tokens, whose pairs stay in registers.
template <size_t kTokens>
void q40_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_ps();
  const uint8_t* block = a.weights + group * a.group_bytes;
  const int8_t* x = a.xq + token * a.columns;
  for (size_t b = 0; b < blocks; ++b, block += kQ40GroupBlock, x += kBlock) {
    prefetch_block<kTokens, kQ40GroupBlock>(a, block, token, b);
    __m256i pairs[kTokens];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const __m256i bytes = load32(block + 16 + 32 * i);
      const __m256i low = _mm256_and_si256(bytes, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
#pragma GCC unroll 4
      for (size_t t = 0; t < kTokens; ++t) {
        const int8_t* four = x + t * a.columns + 4 * i;
        const __m256i first = _mm256_maddubs_epi16(low, broadcast4(four));
        pairs[t] = i == 0 ? first : _mm256_add_epi16(pairs[t], first);
        pairs[t] = in_turn(
            _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(high, broadcast4(four + kBlock / 2))));
      }
    }
    const __m256 scales = load_halves(block);
#pragma GCC unroll 4
    for (size_t t = 0; t < kTokens; ++t) {
      const size_t at = (token + t) * blocks + b;
      const __m256i whole =
          _mm256_sub_epi32(_mm256_madd_epi16(pairs[t], ones), _mm256_set1_epi32(a.x_sums[at]));
      sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole),
                                _mm256_mul_ps(scales, _mm256_set1_ps(a.x_scales[at])), sums[t]);
    }
  }
  const size_t row = group * kGroupRows;
  for (size_t t = 0; t < kTokens; ++t)
    store_rows(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row);
}

// Eight bits: maddubs wants one side unsigned, so the weight's sign moves to the activation. A pair
// is at most 2 x 128 x 127 = 32,512, within int16; pairs are widened before they are added.
template <size_t kTokens>
void q80_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_ps();
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kQ80GroupBlock) {
    prefetch_block<kTokens, kQ80GroupBlock>(a, block, token, b);
    const __m256 scales = load_halves(block);
    __m256i whole[kTokens];
    for (size_t t = 0; t < kTokens; ++t) whole[t] = _mm256_setzero_si256();
    for (size_t i = 0; i < kBlock / 4; ++i) {
      const __m256i bytes = load32(block + 16 + 32 * i);
      const __m256i magnitude = _mm256_abs_epi8(bytes);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m256i x = broadcast4(a.xq + (token + t) * a.columns + b * kBlock + 4 * i);
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, bytes));
        whole[t] = in_turn(_mm256_add_epi32(whole[t], _mm256_madd_epi16(pairs, ones)));
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      const __m256 scale =
          _mm256_mul_ps(scales, _mm256_set1_ps(a.x_scales[(token + t) * blocks + b]));
      sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[t]), scale, sums[t]);
    }
  }
  const size_t row = group * kGroupRows;
  for (size_t t = 0; t < kTokens; ++t)
    store_rows(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row);
}

// A group's weights stay in the first-level cache while all tokens pass over them, as many at a
// time as there are tiles for, the largest first.
template <auto... kTiles>
void matmul_blocks(const MatmulArgs& a) {
  for (size_t g = 0; g < a.groups; ++g) {
    size_t t = 0, size = size_t{1} << (sizeof...(kTiles) - 1);
    const auto pass = [&](auto tile) {
      for (; t + size <= a.tokens; t += size) tile(a, t, g);
      size /= 2;
    };
    (pass(kTiles), ...);
  }
}

}  // namespace

namespace avx2 {

void matmul_f32(const MatmulArgs& a) {
  if (a.tokens >= kManyFloats) return many_f32(a);
  matmul_floats<Type::f32>(a);
}

void matmul_f16(const MatmulArgs& a) {
  if (a.tokens >= kManyFloats) return many_f16(a);
  matmul_floats<Type::f16>(a);
}

void matmul_q80(const MatmulArgs& a) { matmul_blocks<q80_tile<4>, q80_tile<2>, q80_tile<1>>(a); }

void matmul_q40(const MatmulArgs& a) {
  if (a.tokens >= kManyBlocks) return many_q40(a);
  matmul_blocks<q40_tile<4>, q40_tile<2>, q40_tile<1>>(a);
}

}  // namespace avx2
}  // namespace hearth
