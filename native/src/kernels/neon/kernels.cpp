// NEON as every ARMv8-A CPU has it (Raspberry Pi 3 and 4 among them). Each function is held to its
// twin in kernels/scalar/kernels.cpp by tests/test_kernels.cpp.
#include <cmath>
#include <limits>

#include "neon.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

// What is too large becomes the largest number; NaN stays (min and max hand it on).
uint16x4_t to_halves(float32x4_t x) {
  const float32x4_t held =
      vmaxq_f32(vminq_f32(x, vdupq_n_f32(kLargestHalf)), vdupq_n_f32(-kLargestHalf));
  return vreinterpret_u16_f16(vcvt_f16_f32(held));
}

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

}  // namespace

namespace neon {

void quantize(const float* x, size_t columns, int8_t* q, float* scales, int32_t* sums) {
  for (size_t b = 0; b < columns / kBlock; ++b, x += kBlock, q += kBlock) {
    float32x4_t v[8];
    // Compared as bits, in which infinity is above every number and NaN above infinity.
    uint32x4_t top = vdupq_n_u32(0);
    unrolled<8>([&](auto i) {
      v[i] = vld1q_f32(x + 4 * i);
      top = vmaxq_u32(top, vreinterpretq_u32_f32(vabsq_f32(v[i])));
    });
    const uint32_t bits = vmaxvq_u32(top);
    if (bits >= 0x7f800000u) {
      std::memset(q, 0, kBlock);
      scales[b] = std::numeric_limits<float>::quiet_NaN();
      sums[b] = 0;
      continue;
    }
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const float inverse = largest >= kSmallestQuantized ? 127.0f / largest : 0.0f;
    int32x4_t whole[8];  // rounded to nearest, halves to even
    unrolled<8>([&](auto i) { whole[i] = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse)); });
    int16x8_t eight[4];
    unrolled<4>([&](auto i) {
      eight[i] = vcombine_s16(vmovn_s32(whole[2 * i]), vmovn_s32(whole[2 * i + 1]));
    });
    unrolled<2>([&](auto i) {
      vst1q_s8(q + 16 * i, vcombine_s8(vmovn_s16(eight[2 * i]), vmovn_s16(eight[2 * i + 1])));
    });
    const int16x8_t sum = vaddq_s16(vaddq_s16(eight[0], eight[1]), vaddq_s16(eight[2], eight[3]));
    scales[b] = largest / 127.0f;
    sums[b] = 8 * vaddvq_s16(sum);  // at most 32 x 127
  }
}

void matmul_f32(const MatmulArgs& a) { matmul_floats<Type::f32>(a); }
void matmul_f16(const MatmulArgs& a) { matmul_floats<Type::f16>(a); }

void rms_norm(const float* x, const float* weight, size_t size, float epsilon, float* y) {
  float32x4_t low = vdupq_n_f32(0.0f), high = low;
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + 4);
    low = vfmaq_f32(low, a, a);
    high = vfmaq_f32(high, b, b);
  }
  float sums[8];
  vst1q_f32(sums, low);
  vst1q_f32(sums + 4, high);
  for (; i < size; ++i) sums[i % 8] = std::fma(x[i], x[i], sums[i % 8]);
  float sum = 0.0f;
  for (float each : sums) sum += each;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
  for (i = 0; i + 4 <= size; i += 4)
    vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i)));
  for (; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

void add(float* x, const float* y, size_t size) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) vst1q_f32(x + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
  for (; i < size; ++i) x[i] += y[i];
}

void swiglu(float* gate, const float* up, size_t size) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t v = vld1q_f32(gate + i);
    const float32x4_t silu = vdivq_f32(v, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(v))));
    vst1q_f32(gate + i, vmulq_f32(silu, vld1q_f32(up + i)));
  }
  for (; i < size; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void rope(float* head, const float* cos, const float* sin, size_t half) {
  size_t i = 0;
  for (; i + 4 <= half; i += 4) {
    const float32x4_t a = vld1q_f32(head + i), b = vld1q_f32(head + half + i);
    const float32x4_t c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
    vst1q_f32(head + i, vsubq_f32(vmulq_f32(a, c), vmulq_f32(b, s)));
    vst1q_f32(head + half + i, vaddq_f32(vmulq_f32(b, c), vmulq_f32(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

void to_f16(const float* x, size_t size, uint16_t* out) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) vst1_u16(out + i, to_halves(vld1q_f32(x + i)));
  for (; i < size; ++i) out[i] = vget_lane_u16(to_halves(vdupq_n_f32(x[i])), 0);
}

void from_f16(const uint16_t* in, size_t size, float* x, bool add) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t before = add ? vld1q_f32(x + i) : vdupq_n_f32(0.0f);
    vst1q_f32(x + i, vaddq_f32(before, load_halves(in + i)));
  }
  for (; i < size; ++i) x[i] = (add ? x[i] : 0.0f) + half_to_float(in[i]);
}

void from_q80(const int8_t* q, const float* scales, size_t size, float* x, bool add) {
  for (size_t i = 0; i < size; i += 8) {
    const int16x8_t eight = vmovl_s8(vld1_s8(q + i));
    const int32x4_t whole[2] = {vmovl_s16(vget_low_s16(eight)), vmovl_high_s16(eight)};
    unrolled<2>([&](auto k) {
      float* at = x + i + 4 * k;
      const float32x4_t before = add ? vld1q_f32(at) : vdupq_n_f32(0.0f);
      const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(whole[k]), scales[i / kBlock]);
      vst1q_f32(at, vaddq_f32(before, scaled));
    });
  }
}

void keys_from_q80(const int8_t* q, const float* scales, size_t head_size, size_t stride,
                   float* x) {
  for (size_t i = 0; i < head_size; ++i, q += stride, x += stride) {
    const float* scale = scales + i / kBlock * stride;
    for (size_t s = 0; s < stride; s += 8) {
      const int16x8_t eight = vmovl_s8(vld1_s8(q + s));
      const int32x4_t whole[2] = {vmovl_s16(vget_low_s16(eight)), vmovl_high_s16(eight)};
      unrolled<2>([&](auto k) {
        const size_t at = s + 4 * k;
        vst1q_f32(x + at, vmulq_f32(vcvtq_f32_s32(whole[k]), vld1q_f32(scale + at)));
      });
    }
  }
}

}  // namespace neon

const Kernels kNeonKernels = {
    .name = "neon",
    .quantize = neon::quantize,
    .matmul_f32 = neon::matmul_f32,
    .matmul_f16 = neon::matmul_f16,
    .matmul_q80 = matmul_blocks<q80_tile<2>, q80_tile<1>>,
    .matmul_q40 = matmul_blocks<q40_tile<2>, q40_tile<1>>,
    .rms_norm = neon::rms_norm,
    .add = neon::add,
    .swiglu = neon::swiglu,
    .rope = neon::rope,
    .attend_f32 = neon::attend_f32,
    .attend_f16 = neon::attend_f16,
    .to_f16 = neon::to_f16,
    .from_f16 = neon::from_f16,
    .from_q80 = neon::from_q80,
    .keys_from_q80 = neon::keys_from_q80,
};

}  // namespace hearth
