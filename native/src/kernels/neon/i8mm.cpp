// FEAT_I8MM (Arm servers and phones since about 2021), for products with several tokens: one
// instruction multiplies two rows of eight int8 with two tokens' eight activations, twice the
// multiply-adds of FEAT_DotProd's. It has the products of q80 and q40; tokens that do not fill a
// tile of four, and the other types, take FEAT_DotProd's.
//
// Not an instance of generic/block_products.h: an instruction's result is two rows by two tokens.
// So operands, scales and sums lie in pairs, and only a tile that is laid out for it pays.
//
// The packed layout must be paired first: weights by one zip for each vector, once for the tile;
// activations once for four groups. Instructions for a block of eight rows and four tokens, as GCC
// 12 compiles them, pairing included: q40 132 (32 of them products) where dotprod has 171 (64), q80
// 127 where it has 137. With two tokens the two are even. A tile of eight would unpack half as
// often, but 32 registers do not hold its sums and operands: with what it spills it saves nothing.
#include "../generic/table.h"
#include "dotprod.h"

namespace hearth {
namespace {

constexpr size_t kFour = 4;                     // of a tile
constexpr size_t kPairs = 2;                    // of tokens in it
constexpr size_t kRowPairs = 2;                 // in half a group
constexpr size_t kOperands = 4;                 // of eight columns in a block
constexpr size_t kChunk = 8;                    // blocks of 32 columns that are laid out at once
constexpr size_t kScaleBytes = 2 * kGroupRows;  // of a block of a group, before its codes
constexpr size_t kTileGroups = 4;               // groups of rows that share what was laid out

// Activations as the instruction wants them: eight columns of one token, then the same columns of
// the other; scales and offsets as its 2 x 2 results lie (two rows x two tokens).
struct Panel {
  int8x16_t x[kChunk][kPairs][kOperands];
  float32x4_t scales[kChunk][kPairs];
  int32x4_t offsets[kChunk][kPairs];
};

void lay_out(const MatmulArgs& a, const QuantizedRows& in, size_t token, size_t begin, size_t count,
             Panel& panel) {
  const size_t blocks = a.columns / kBlock;
  for (size_t p = 0; p < kPairs; ++p) {
    const size_t first = token + 2 * p;
    for (size_t b = 0; b < count; ++b) {
      const int8_t* x = in.q + first * a.columns + (begin + b) * kBlock;
      unrolled<2>([&](auto k) {
        const int64x2_t one = vreinterpretq_s64_s8(vld1q_s8(x + 16 * k));
        const int64x2_t two = vreinterpretq_s64_s8(vld1q_s8(x + a.columns + 16 * k));
        panel.x[b][p][2 * k] = vreinterpretq_s8_s64(vzip1q_s64(one, two));
        panel.x[b][p][2 * k + 1] = vreinterpretq_s8_s64(vzip2q_s64(one, two));
      });
      const size_t at = first * blocks + begin + b, next = at + blocks;
      panel.scales[b][p] =
          vzip1q_f32(vld1q_dup_f32(in.scales + at), vld1q_dup_f32(in.scales + next));
      const int32x4_t these = vdupq_n_s32(in.sums[at].first + in.sums[at].second);
      const int32x4_t those = vdupq_n_s32(in.sums[next].first + in.sums[next].second);
      panel.offsets[b][p] = vmulq_n_s32(vzip1q_s32(these, those), -8);
    }
  }
}

// Four columns of four rows, and the next four, become eight columns of two rows, twice.
[[gnu::always_inline]] inline void pair_rows(const uint8_t* at, uint8x16_t (&rows)[kRowPairs]) {
  const uint32x4_t these = vreinterpretq_u32_u8(vld1q_u8(at));
  const uint32x4_t next = vreinterpretq_u32_u8(vld1q_u8(at + 32));
  rows[0] = vreinterpretq_u8_u32(vzip1q_u32(these, next));
  rows[1] = vreinterpretq_u8_u32(vzip2q_u32(these, next));
}

// Half a group's block. Nibble bytes are paired before they are taken apart.
template <Type kType>
[[gnu::always_inline]] inline void load_operands(const uint8_t* at,
                                                 int8x16_t (&w)[kRowPairs][kOperands]) {
  constexpr bool kNibbles = kType == Type::q40;
  unrolled<kNibbles ? 2 : kOperands>([&](auto k) {
    uint8x16_t rows[kRowPairs];
    pair_rows(at + 64 * k, rows);
    unrolled<kRowPairs>([&](auto r) {
      if constexpr (kNibbles) {
        w[r][k] = vreinterpretq_s8_u8(vandq_u8(rows[r], vdupq_n_u8(15)));
        w[r][k + 2] = vreinterpretq_s8_u8(vshrq_n_u8(rows[r], 4));
      } else {
        w[r][k] = vreinterpretq_s8_u8(rows[r]);
      }
    });
  });
}

// Sums of a group and a tile of tokens: [half][pair of rows][pair of tokens].
using Sums = float32x4_t[kHalves][kRowPairs][kPairs];

template <Type kType>
void add_chunk(const uint8_t* block, const Panel& panel, size_t count, Sums& totals) {
  constexpr size_t kBlockBytes = kGroupRows * kTypeInfos[static_cast<size_t>(kType)].block_bytes;
  Sums sums;  // in registers
  const auto each = [](auto step) HEARTH_ALWAYS_INLINE {
    unrolled<kHalves>([&](auto h) {
      unrolled<kRowPairs>([&](auto r) { unrolled<kPairs>([&](auto p) { step(h, r, p); }); });
    });
  };
  each([&](auto h, auto r, auto p) { sums[h][r][p] = totals[h][r][p]; });
  for (size_t b = 0; b < count; ++b, block += kBlockBytes) {
    unrolled<kHalves>([&](auto h) {
      const float32x4_t scales =
          Neon::load(reinterpret_cast<const uint16_t*>(block) + Neon::kWidth * h);
      const float32x4_t row_scales[kRowPairs] = {vzip1q_f32(scales, scales),
                                                 vzip2q_f32(scales, scales)};
      int8x16_t w[kRowPairs][kOperands];
      load_operands<kType>(block + kScaleBytes + 16 * h, w);
      unrolled<kRowPairs>([&](auto r) {
        unrolled<kPairs>([&](auto p) {
          int32x4_t whole = kType == Type::q40 ? panel.offsets[b][p] : vdupq_n_s32(0);
          unrolled<kOperands>(
              [&](auto k) { whole = vmmlaq_s32(whole, w[r][k], panel.x[b][p][k]); });
          sums[h][r][p] = vfmaq_f32(sums[h][r][p], vcvtq_f32_s32(whole),
                                    vmulq_f32(row_scales[r], panel.scales[b][p]));
        });
      });
    });
  }
  each([&](auto h, auto r, auto p) { totals[h][r][p] = sums[h][r][p]; });
}

template <Type kType>
void tile(const MatmulArgs& a, const QuantizedRows& x, size_t token, size_t group, size_t groups) {
  constexpr size_t kBlockBytes = kGroupRows * kTypeInfos[static_cast<size_t>(kType)].block_bytes;
  const size_t blocks = a.columns / kBlock;
  Sums sums[kTileGroups] = {};
  Panel panel;
  for (size_t begin = 0; begin < blocks; begin += kChunk) {
    const size_t count = smaller(kChunk, blocks - begin);
    lay_out(a, x, token, begin, count, panel);
    for (size_t g = 0; g < groups; ++g) {
      const uint8_t* block = a.weights + (group + g) * a.group_bytes + begin * kBlockBytes;
      add_chunk<kType>(block, panel, count, sums[g]);
    }
  }
  for (size_t g = 0; g < groups; ++g) {
    const size_t row = (group + g) * kGroupRows;
    for (size_t p = 0; p < kPairs; ++p) {
      float* y = a.y + (token + 2 * p) * a.y_stride + row;
      float32x4_t first[kHalves], second[kHalves];  // of the two tokens
      unrolled<kHalves>([&](auto h) {
        first[h] = vuzp1q_f32(sums[g][h][0][p], sums[g][h][1][p]);
        second[h] = vuzp2q_f32(sums[g][h][0][p], sums[g][h][1][p]);
      });
      store_rows<Neon>(y, first, a.rows - row);
      store_rows<Neon>(y + a.y_stride, second, a.rows - row);
    }
  }
}

template <Type kType, auto kRest>
void matmul_by_fours(const MatmulArgs& a, const QuantizedRows& x) {
  const size_t whole = a.tokens / kFour * kFour;
  for (size_t g = 0; g < a.groups; g += kTileGroups) {
    const size_t groups = smaller(kTileGroups, a.groups - g);
    for (size_t t = 0; t < whole; t += kFour) tile<kType>(a, x, t, g, groups);
  }
  if (whole == a.tokens) return;
  const size_t blocks = a.columns / kBlock;
  MatmulArgs rest = a;
  rest.tokens -= whole;
  rest.y += whole * a.y_stride;
  kRest(rest, {.q = x.q + whole * a.columns,
               .scales = x.scales + whole * blocks,
               .sums = x.sums + whole * blocks});
}

constexpr Kernels with_i8mm(Kernels kernels) {
  kernels.matmul_blocks[static_cast<size_t>(Type::q80)] =
      matmul_by_fours<Type::q80, matmul_blocks<DotprodBytes, Q80<DotprodBytes>>>;
  kernels.matmul_blocks[static_cast<size_t>(Type::q40)] =
      matmul_by_fours<Type::q40, matmul_blocks<DotprodBytes, Q40<DotprodBytes>>>;
  return kernels;
}

}  // namespace

extern constexpr Kernels kI8mmKernels = with_i8mm(kernels_of<DotprodBytes>("i8mm"));

}  // namespace hearth
