// FEAT_DotProd (Raspberry Pi 5 and most Arm cores since 2018): one instruction multiplies four
// int8 of each of four rows with four activations and adds them up, which is what a vector of a
// packed group holds. Entered only after a look at the CPU; everything else is kernels_neon.cpp's.
#include "neon.h"

namespace hearth {
namespace {

// Two vectors of weights (rows 0 .. 3, rows 4 .. 7) by lane kLane of each token's activations.
template <size_t kLane, size_t kTokens>
[[gnu::always_inline]] inline void add_products(const int8x16_t (&w)[kHalves],
                                                const int8x16_t (&x)[kTokens],
                                                int32x4_t (&whole)[kTokens][kHalves]) {
  unrolled<kTokens>([&](auto t) {
    unrolled<kHalves>(
        [&](auto h) { whole[t][h] = vdotq_laneq_s32(whole[t][h], w[h], x[t], kLane); });
  });
}

template <Type kType, size_t kTokens>
void tile(const MatmulArgs& a, size_t token, size_t group) {
  constexpr size_t kBlockBytes = kType == Type::q40 ? kQ40BlockBytes : kQ80BlockBytes;
  const size_t blocks = a.columns / kBlock;
  float32x4_t sums[kTokens][kHalves];
  unrolled<kTokens>([&](auto t) { sums[t][0] = sums[t][1] = vdupq_n_f32(0.0f); });
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kGroupRows * kBlockBytes) {
    int8x16_t x[2][kTokens];
    int32x4_t whole[kTokens][kHalves];
    unrolled<kTokens>([&](auto t) {
      const int8_t* at = a.xq + (token + t) * a.columns + b * kBlock;
      x[0][t] = vld1q_s8(at);
      x[1][t] = vld1q_s8(at + 16);
      whole[t][0] = whole[t][1] =
          kType == Type::q40 ? vnegq_s32(vld1q_dup_s32(a.x_sums + (token + t) * blocks + b))
                             : vdupq_n_s32(0);
    });
    if constexpr (kType == Type::q40) {
      unrolled<4>([&](auto i) {
        int8x16_t low[kHalves], high[kHalves];
        unrolled<kHalves>([&](auto h) {
          const uint8x16_t bytes = vld1q_u8(block + 16 + 32 * i + 16 * h);
          low[h] = low_nibbles(bytes);
          high[h] = high_nibbles(bytes);
        });
        add_products<i>(low, x[0], whole);
        add_products<i>(high, x[1], whole);
      });
    } else {
      unrolled<8>([&](auto i) {
        int8x16_t w[kHalves];
        unrolled<kHalves>(
            [&](auto h) { w[h] = vreinterpretq_s8_u8(vld1q_u8(block + 16 + 32 * i + 16 * h)); });
        add_products<i % 4>(w, x[i / 4], whole);
      });
    }
    unrolled<kTokens>([&](auto t) {
      unrolled<kHalves>([&](auto h) {
        sums[t][h] = add_block(sums[t][h], whole[t][h], load_halves(block + 8 * h),
                               a.x_scales[(token + t) * blocks + b]);
      });
    });
  }
  const size_t row = group * kGroupRows;
  unrolled<kTokens>([&](auto t) {
    unrolled<kHalves>([&](auto h) {
      store_rows(a.y + (token + t) * a.y_stride + row, sums[t][h], h, a.rows - row);
    });
  });
}

// A group's weights stay in the first-level cache while all tokens pass over them. Four tokens are
// what 32 registers hold: a sum, a block's sum and the activations, two vectors each.
template <Type kType>
void matmul_blocks(const MatmulArgs& a) {
  for (size_t g = 0; g < a.groups; ++g) {
    size_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) tile<kType, 4>(a, t, g);
    if (t + 3 == a.tokens) tile<kType, 3>(a, t, g);
    if (t + 2 == a.tokens) tile<kType, 2>(a, t, g);
    if (t + 1 == a.tokens) tile<kType, 1>(a, t, g);
  }
}

}  // namespace

namespace dotprod {
void matmul_q80(const MatmulArgs& a) { matmul_blocks<Type::q80>(a); }
void matmul_q40(const MatmulArgs& a) { matmul_blocks<Type::q40>(a); }
}  // namespace dotprod

}  // namespace hearth
