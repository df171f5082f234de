// AVX2: the matrix products. For one token they are bound by memory, and ask for weights ahead of
// time, because the blocks in flight of a core hide less of memory's latency than there is; for
// many they are bound by arithmetic, and do what they can on weights that are in registers or in
// the first-level cache.
#include <algorithm>
#include <cstring>

#include "kernels_avx2.h"

namespace hearth {
namespace {

constexpr size_t kLine = 64;
// How far ahead of a token's product weights are asked for. Measured: 1 to 2 KiB is flat.
constexpr size_t kAhead = 1536;

__m256i load32(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

// Four int8 activations in each of the eight lanes.
__m256i broadcast4(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

// Keeps the compiler from computing what comes later first: GCC else starts all products of a block
// before it adds any, and has no registers left for them (30 % of a prefill's speed).
void in_turn(__m256i& v) { asm("" : "+x"(v)); }

// A hint, harmless past the end of the weights.
void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

void store_rows(float* y, __m256 sums, size_t rows) {
  if (rows >= kGroupRows) {
    _mm256_storeu_ps(y, sums);
    return;
  }
  alignas(32) float all[kGroupRows];
  _mm256_store_ps(all, sums);
  std::memcpy(y, all, rows * sizeof(float));
}

// -- f32 and f16
// -----------------------------------------------------------------------------------

constexpr size_t kTileTokens = 3;
// Two groups at once: for one token their four chains of additions hide the latency; for three, six
// fused multiply-adds share five loads.
constexpr size_t kTileGroups = 2;
// With more tokens than a tile has, weights are widened once for all of them, so many columns at a
// time that they (16 KiB) and what the tile reads of the activations stay in the first-level cache.
constexpr size_t kPanelColumns = 256;
constexpr size_t kSlabTokens = 63;

template <Type kType>
constexpr size_t kColumnBytes = kGroupRows * (kType == Type::f32 ? 4 : 2);

// The weights of eight rows in one column, as f32.
template <Type kType>
__m256 load_column(const uint8_t* at) {
  if constexpr (kType == Type::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  return load_halves(at);
}

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
      prefetch(at + kAhead);
      prefetch(at + kAhead + kLine);
    }
    return load_column<kType>(at);
  });
  sums.visit([&](size_t t, size_t g, __m256 even, __m256 odd) {
    const size_t row = (group + g) * kGroupRows;
    store_rows(a.y + t * a.y_stride + row, _mm256_add_ps(even, odd), a.rows - row);
  });
}

// What a slab of tokens has been given so far: even and odd columns of one token and group.
struct alignas(32) Part {
  float even[kGroupRows], odd[kGroupRows];
};

template <size_t kTokens, size_t kGroups>
void panel_tile(const float* x, size_t stride, size_t columns, const float* panel,
                Part (*parts)[kGroups]) {
  Sums<kTokens, kGroups> sums;
  sums.visit([&](size_t t, size_t g, __m256& even, __m256& odd) {
    even = _mm256_load_ps(parts[t][g].even);
    odd = _mm256_load_ps(parts[t][g].odd);
  });
  sums.add(x, stride, columns, [&](size_t g, size_t c) {
    return _mm256_load_ps(panel + (c * kGroups + g) * kGroupRows);
  });
  sums.visit([&](size_t t, size_t g, __m256 even, __m256 odd) {
    _mm256_store_ps(parts[t][g].even, even);
    _mm256_store_ps(parts[t][g].odd, odd);
  });
}

// Tokens [token, token + tokens) with kGroups groups, a panel of columns after the other.
template <Type kType, size_t kGroups>
void slab(const MatmulArgs& a, size_t group, size_t token, size_t tokens) {
  alignas(32) float panel[kPanelColumns * kGroups * kGroupRows];
  Part parts[kSlabTokens][kGroups];
  std::memset(parts, 0, sizeof parts);
  const uint8_t* w = a.weights + group * a.group_bytes;
  for (size_t begin = 0; begin < a.columns; begin += kPanelColumns) {
    const size_t columns = std::min(kPanelColumns, a.columns - begin);
    for (size_t c = 0; c < columns; ++c) {
      for (size_t g = 0; g < kGroups; ++g) {
        const uint8_t* at = w + g * a.group_bytes + (begin + c) * kColumnBytes<kType>;
        _mm256_store_ps(panel + (c * kGroups + g) * kGroupRows, load_column<kType>(at));
      }
    }
    // The next panel comes from memory while this one is computed with.
    const uint8_t* next = w + (begin + columns) * kColumnBytes<kType>;
    const size_t lines = kPanelColumns * kColumnBytes<kType> / kLine;
    const size_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
    for (size_t tile = 0; tile < tiles; ++tile) {
      for (size_t line = tile * lines / tiles; line < (tile + 1) * lines / tiles; ++line) {
        for (size_t g = 0; g < kGroups; ++g) prefetch(next + g * a.group_bytes + line * kLine);
      }
      const size_t t = tile * kTileTokens;
      const float* x = a.x + (token + t) * a.columns + begin;
      const size_t count = std::min(kTileTokens, tokens - t);
      if (count == 3) panel_tile<3, kGroups>(x, a.columns, columns, panel, parts + t);
      if (count == 2) panel_tile<2, kGroups>(x, a.columns, columns, panel, parts + t);
      if (count == 1) panel_tile<1, kGroups>(x, a.columns, columns, panel, parts + t);
    }
  }
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t g = 0; g < kGroups; ++g) {
      const size_t row = (group + g) * kGroupRows;
      const Part& part = parts[t][g];
      store_rows(a.y + (token + t) * a.y_stride + row,
                 _mm256_add_ps(_mm256_load_ps(part.even), _mm256_load_ps(part.odd)), a.rows - row);
    }
  }
}

template <Type kType, size_t kGroups>
void float_groups(const MatmulArgs& a, size_t group) {
  if (a.tokens == 1) return few_floats<kType, 1, kGroups>(a, group);
  if (a.tokens == 2) return few_floats<kType, 2, kGroups>(a, group);
  if (a.tokens == 3) return few_floats<kType, 3, kGroups>(a, group);
  for (size_t t = 0; t < a.tokens; t += kSlabTokens)
    slab<kType, kGroups>(a, group, t, std::min(kSlabTokens, a.tokens - t));
}

template <Type kType>
void matmul_floats(const MatmulArgs& a) {
  size_t g = 0;
  for (; g + kTileGroups <= a.groups; g += kTileGroups) float_groups<kType, kTileGroups>(a, g);
  for (; g < a.groups; ++g) float_groups<kType, 1>(a, g);
}

// -- q40 and q80
// -----------------------------------------------------------------------------------

constexpr size_t kQ40GroupBlock = kGroupRows * kQ40BlockBytes;
constexpr size_t kQ80GroupBlock = kGroupRows * kQ80BlockBytes;

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
        pairs[t] =
            _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(high, broadcast4(four + kBlock / 2)));
        in_turn(pairs[t]);
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
        whole[t] = _mm256_add_epi32(whole[t], _mm256_madd_epi16(pairs, ones));
        in_turn(whole[t]);
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

void matmul_f32(const MatmulArgs& a) { matmul_floats<Type::f32>(a); }
void matmul_f16(const MatmulArgs& a) { matmul_floats<Type::f16>(a); }
void matmul_q80(const MatmulArgs& a) { matmul_blocks<q80_tile<4>, q80_tile<2>, q80_tile<1>>(a); }
void matmul_q40(const MatmulArgs& a) { matmul_blocks<q40_tile<4>, q40_tile<2>, q40_tile<1>>(a); }

}  // namespace avx2
}  // namespace hearth
