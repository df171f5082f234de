// NEON as every ARMv8-A CPU has it (Raspberry Pi 3 and 4 among them). Each function is held to its
// twin in kernels/scalar/kernels.cpp by tests/test_kernels.cpp.
#include "../generic/table.h"
#include "neon.h"
#include "vec.h"

namespace hearth {
namespace {

// The weights of four rows in one column, as f32.
template <Type kType>
float32x4_t load_weights(const uint8_t* at) {
  if constexpr (kType == Type::f32) return vld1q_f32(reinterpret_cast<const float*>(at));
  return load_halves(at);
}

// kTokens x kGroups tiles; two sums for each (even and odd columns), as in the scalar twin.
template <Type kType, size_t kTokens, size_t kGroups>
void float_tile(const MatmulArgs& a, size_t token, size_t group) {
  constexpr size_t kNumber = kType == Type::f32 ? 4 : 2;
  constexpr size_t kColumn = kGroupRows * kNumber;
  constexpr size_t kVectors = kGroups * kHalves;
  float32x4_t sums[2][kTokens][kVectors];
  unrolled<kTokens>([&](auto t) {
    unrolled<kVectors>([&](auto v) { sums[0][t][v] = sums[1][t][v] = vdupq_n_f32(0.0f); });
  });
  const float* x = a.x + token * a.columns;
  const uint8_t* w = a.weights + group * a.group_bytes;
  const auto weights = [&](size_t c, size_t v) {
    return load_weights<kType>(w + v / kHalves * a.group_bytes + c * kColumn +
                               v % kHalves * kHalfRows * kNumber);
  };
  size_t c = 0;
  for (; c + 4 <= a.columns; c += 4) {
    float32x4_t four[kTokens];
    unrolled<kTokens>([&](auto t) { four[t] = vld1q_f32(x + t * a.columns + c); });
    unrolled<4>([&](auto lane) {
      unrolled<kVectors>([&](auto v) {
        const float32x4_t column = weights(c + lane, v);
        unrolled<kTokens>([&](auto t) {
          float32x4_t& sum = sums[lane % 2][t][v];
          sum = vfmaq_laneq_f32(sum, column, four[t], lane);
        });
      });
    });
  }
  unrolled<3>([&](auto i) {
    if (i >= a.columns % 4) return;
    unrolled<kVectors>([&](auto v) {
      const float32x4_t column = weights(c + i, v);
      unrolled<kTokens>([&](auto t) {
        float32x4_t& sum = sums[i % 2][t][v];
        sum = vfmaq_n_f32(sum, column, x[t * a.columns + c + i]);
      });
    });
  });
  unrolled<kTokens>([&](auto t) {
    unrolled<kVectors>([&](auto v) {
      const size_t row = (group + v / kHalves) * kGroupRows;
      store_rows(a.y + (token + t) * a.y_stride + row, vaddq_f32(sums[0][t][v], sums[1][t][v]),
                 v % kHalves, a.rows - row);
    });
  });
}

// One token: two groups at once, whose eight chains of additions hide the latency. Several: one
// group, so that what is loaded and converted serves four tokens.
template <Type kType>
void matmul_floats(const MatmulArgs& a) {
  size_t g = 0;
  if (a.tokens == 1)
    for (; g + 2 <= a.groups; g += 2) float_tile<kType, 1, 2>(a, 0, g);
  for (; g < a.groups; ++g) {
    size_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) float_tile<kType, 4, 1>(a, t, g);
    if (t + 3 == a.tokens) float_tile<kType, 3, 1>(a, t, g);
    if (t + 2 == a.tokens) float_tile<kType, 2, 1>(a, t, g);
    if (t + 1 == a.tokens) float_tile<kType, 1, 1>(a, t, g);
  }
}

// Four bits: a product of an unsigned nibble is at most 15 x 127 in magnitude, and eight of them
// are added in each lane of a block: 15,240, and 30,480 after the sum of pairs. All within int16.
template <size_t kTokens>
void q40_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  float32x4_t sums[kTokens][kHalves];
  unrolled<kTokens>([&](auto t) { sums[t][0] = sums[t][1] = vdupq_n_f32(0.0f); });
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kGroupRows * kQ40BlockBytes) {
    int8x16_t x[kTokens][2];
    int16x8_t pairs[kTokens][kHalves][2];  // two rows in each vector, four lanes a row
    unrolled<kTokens>([&](auto t) {
      const int8_t* at = a.xq + (token + t) * a.columns + b * kBlock;
      x[t][0] = vld1q_s8(at);
      x[t][1] = vld1q_s8(at + 16);
      unrolled<kHalves>([&](auto h) { pairs[t][h][0] = pairs[t][h][1] = vdupq_n_s16(0); });
    });
    unrolled<4>([&](auto i) {
      int8x16_t w[kHalves][2];
      unrolled<kHalves>([&](auto h) {
        const uint8x16_t bytes = vld1q_u8(block + 16 + 32 * i + 16 * h);
        w[h][0] = low_nibbles(bytes);
        w[h][1] = high_nibbles(bytes);
      });
      unrolled<kTokens>([&](auto t) {
        unrolled<2>([&](auto n) {
          // Four activations, once for each row.
          const int8x16_t four =
              vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x[t][n]), i));
          unrolled<kHalves>([&](auto h) {
            int16x8_t(&sum)[2] = pairs[t][h];
            sum[0] = vmlal_s8(sum[0], vget_low_s8(w[h][n]), vget_low_s8(four));
            sum[1] = vmlal_high_s8(sum[1], w[h][n], four);
          });
        });
      });
    });
    unrolled<kTokens>([&](auto t) {
      const size_t at = (token + t) * blocks + b;
      const int32x4_t offset = vld1q_dup_s32(a.x_sums + at);
      unrolled<kHalves>([&](auto h) {
        const int32x4_t whole =
            vsubq_s32(vpaddlq_s16(vpaddq_s16(pairs[t][h][0], pairs[t][h][1])), offset);
        sums[t][h] = add_block(sums[t][h], whole, load_halves(block + 8 * h), a.x_scales[at]);
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

// Eight bits: two products, at most 2 x 128 x 127 = 32,512, are added as int16; then widened.
template <size_t kTokens>
void q80_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  float32x4_t sums[kTokens][kHalves];
  unrolled<kTokens>([&](auto t) { sums[t][0] = sums[t][1] = vdupq_n_f32(0.0f); });
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kGroupRows * kQ80BlockBytes) {
    int8x16_t x[kTokens][2];
    int32x4_t pairs[kTokens][kHalves][2];  // two rows in each vector, two lanes a row
    unrolled<kTokens>([&](auto t) {
      const int8_t* at = a.xq + (token + t) * a.columns + b * kBlock;
      x[t][0] = vld1q_s8(at);
      x[t][1] = vld1q_s8(at + 16);
      unrolled<kHalves>([&](auto h) { pairs[t][h][0] = pairs[t][h][1] = vdupq_n_s32(0); });
    });
    unrolled<4>([&](auto i) {
      int8x16_t w[kHalves][2];
      unrolled<kHalves>([&](auto h) {
        unrolled<2>([&](auto n) {
          w[h][n] = vreinterpretq_s8_u8(vld1q_u8(block + 16 + 32 * (2 * i + n) + 16 * h));
        });
      });
      unrolled<kTokens>([&](auto t) {
        const int32x4_t eight = vreinterpretq_s32_s8(x[t][i / 2]);
        const int8x16_t first = vreinterpretq_s8_s32(vdupq_laneq_s32(eight, i % 2 * 2));
        const int8x16_t second = vreinterpretq_s8_s32(vdupq_laneq_s32(eight, i % 2 * 2 + 1));
        unrolled<kHalves>([&](auto h) {
          int16x8_t products = vmull_s8(vget_low_s8(w[h][0]), vget_low_s8(first));
          products = vmlal_s8(products, vget_low_s8(w[h][1]), vget_low_s8(second));
          pairs[t][h][0] = vpadalq_s16(pairs[t][h][0], products);
          products = vmlal_high_s8(vmull_high_s8(w[h][0], first), w[h][1], second);
          pairs[t][h][1] = vpadalq_s16(pairs[t][h][1], products);
        });
      });
    });
    unrolled<kTokens>([&](auto t) {
      unrolled<kHalves>([&](auto h) {
        const int32x4_t whole = vpaddq_s32(pairs[t][h][0], pairs[t][h][1]);
        sums[t][h] = add_block(sums[t][h], whole, load_halves(block + 8 * h),
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

// A group's weights stay in the first-level cache while all tokens pass over them. For more than
// two tokens at once there are not enough registers.
template <auto kTile2, auto kTile1>
void matmul_blocks(const MatmulArgs& a) {
  for (size_t g = 0; g < a.groups; ++g) {
    size_t t = 0;
    for (; t + 2 <= a.tokens; t += 2) kTile2(a, t, g);
    if (t < a.tokens) kTile1(a, t, g);
  }
}

constexpr Products kProducts = {.matmul_f32 = matmul_floats<Type::f32>,
                                .matmul_f16 = matmul_floats<Type::f16>,
                                .matmul_q80 = matmul_blocks<q80_tile<2>, q80_tile<1>>,
                                .matmul_q40 = matmul_blocks<q40_tile<2>, q40_tile<1>>};

// NEON's table with the integer products of a newer instruction set.
constexpr Kernels with_blocks(const char* name, void (*matmul_q80)(const MatmulArgs&),
                              void (*matmul_q40)(const MatmulArgs&)) {
  Products products = kProducts;
  products.matmul_q80 = matmul_q80;
  products.matmul_q40 = matmul_q40;
  return table<Neon>(name, products);
}

}  // namespace

extern constexpr Kernels kNeonKernels = table<Neon>("neon", kProducts);
extern constexpr Kernels kDotprodKernels =
    with_blocks("dotprod", dotprod::matmul_q80, dotprod::matmul_q40);
extern constexpr Kernels kI8mmKernels = with_blocks("i8mm", i8mm::matmul_q80, i8mm::matmul_q40);

}  // namespace hearth
