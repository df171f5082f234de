// NEON as every ARMv8-A CPU has it (Raspberry Pi 3 and 4 among them). Each function is held to its
// twin in kernels_scalar.cpp by tests/test_kernels.cpp.
#include <cmath>
#include <limits>

#include "kernels_arm.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

float16x4_t as_halves(const uint16_t* at) { return vreinterpret_f16_u16(vld1_u16(at)); }

float half_to_float(uint16_t half) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

// What is too large becomes the largest number; NaN stays (min and max hand it on).
uint16x4_t to_halves(float32x4_t x) {
  const float32x4_t held =
      vmaxq_f32(vminq_f32(x, vdupq_n_f32(kLargestHalf)), vdupq_n_f32(-kLargestHalf));
  return vreinterpret_u16_f16(vcvt_f16_f32(held));
}

// e^x for x <= about 88; Cephes' polynomial after x = n ln 2 + r. Below -87 the result is near 0.
// NaN stays NaN.
float32x4_t exp4(float32x4_t x) {
  x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(88.0f)), vdupq_n_f32(-87.3f));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504088896341f));
  float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.9875691500e-4f);
  p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
  p = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0f)), p, vmulq_f32(r, r));
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(p, vreinterpretq_f32_s32(power));
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

template <Type kType>
float32x4_t load4(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return vld1q_f32(static_cast<const float*>(numbers) + index);
  return vcvt_f32_f16(as_halves(static_cast<const uint16_t*>(numbers) + index));
}

template <Type kType>
float load1(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return static_cast<const float*>(numbers)[index];
  return half_to_float(static_cast<const uint16_t*>(numbers)[index]);
}

// Scores of kHeads heads from `head` on: they share each key, whose conversion from f16 is what
// small cores are slowest at. A head's own order of sums is the same whatever its company.
template <Type kType, size_t kHeads>
void score_heads(const AttendArgs& a, size_t head) {
  const size_t size = a.head_size;
  const float* q = a.q + head * size;
  for (size_t s = 0; s < a.slots; ++s) {
    const size_t key = s * size;
    float32x4_t sums[kHeads][4];
    unrolled<kHeads>([&](auto h) { unrolled<4>([&](auto k) { sums[h][k] = vdupq_n_f32(0.0f); }); });
    size_t i = 0;
    for (; i + 16 <= size; i += 16) {
      unrolled<4>([&](auto k) {
        const float32x4_t keys = load4<kType>(a.keys, key + i + 4 * k);
        unrolled<kHeads>([&](auto h) {
          sums[h][k] = vfmaq_f32(sums[h][k], vld1q_f32(q + h * size + i + 4 * k), keys);
        });
      });
    }
    for (; i + 4 <= size; i += 4) {
      const float32x4_t keys = load4<kType>(a.keys, key + i);
      unrolled<kHeads>(
          [&](auto h) { sums[h][0] = vfmaq_f32(sums[h][0], vld1q_f32(q + h * size + i), keys); });
    }
    unrolled<kHeads>([&](auto h) {
      float sum = vaddvq_f32(
          vaddq_f32(vaddq_f32(sums[h][0], sums[h][1]), vaddq_f32(sums[h][2], sums[h][3])));
      for (size_t j = i; j < size; ++j) sum += q[h * size + j] * load1<kType>(a.keys, key + j);
      a.scratch[(head + h) * a.slots + s] = sum;
    });
  }
}

// Scores become weights; what was summed before must be multiplied by the result.
float weigh(const AttendArgs& a, size_t head) {
  float* scores = a.scratch + head * a.slots;
  float largest = a.largest[head];
  for (size_t s = 0; s < a.slots; ++s) largest = scores[s] > largest ? scores[s] : largest;
  const float shrink = std::exp(a.largest[head] - largest);
  float sum = a.sum[head] * shrink;
  size_t s = 0;
  for (; s + 4 <= a.slots; s += 4) {
    const float32x4_t e = exp4(vsubq_f32(vld1q_f32(scores + s), vdupq_n_f32(largest)));
    vst1q_f32(scores + s, e);
    sum += vaddvq_f32(e);
  }
  for (; s < a.slots; ++s) {
    scores[s] = std::exp(scores[s] - largest);
    sum += scores[s];
  }
  a.largest[head] = largest;
  a.sum[head] = sum;
  return shrink;
}

// out = out * shrink + sum over slots of weight * value, for 4 * kVectors numbers from `begin` of
// each head, which stay in registers over the whole page.
template <Type kType, size_t kHeads, size_t kVectors>
void mix(const AttendArgs& a, size_t head, const float (&shrink)[kHeads], size_t begin) {
  float* out = a.out + head * a.head_size + begin;
  const float* weights = a.scratch + head * a.slots;
  float32x4_t sums[kHeads][kVectors];
  unrolled<kHeads>([&](auto h) {
    unrolled<kVectors>([&](auto k) {
      sums[h][k] = vmulq_n_f32(vld1q_f32(out + h * a.head_size + 4 * k), shrink[h]);
    });
  });
  for (size_t s = 0; s < a.slots; ++s) {
    unrolled<kVectors>([&](auto k) {
      const float32x4_t values = load4<kType>(a.values, s * a.head_size + begin + 4 * k);
      unrolled<kHeads>(
          [&](auto h) { sums[h][k] = vfmaq_n_f32(sums[h][k], values, weights[h * a.slots + s]); });
    });
  }
  unrolled<kHeads>([&](auto h) {
    unrolled<kVectors>([&](auto k) { vst1q_f32(out + h * a.head_size + 4 * k, sums[h][k]); });
  });
}

template <Type kType, size_t kHeads>
void mix_heads(const AttendArgs& a, size_t head) {
  float shrink[kHeads];
  for (size_t h = 0; h < kHeads; ++h) shrink[h] = weigh(a, head + h);
  const size_t size = a.head_size;
  size_t i = 0;
  for (; i + 32 <= size; i += 32) mix<kType, kHeads, 8>(a, head, shrink, i);
  for (; i + 16 <= size; i += 16) mix<kType, kHeads, 4>(a, head, shrink, i);
  for (; i + 4 <= size; i += 4) mix<kType, kHeads, 1>(a, head, shrink, i);
  for (; i < size; ++i) {
    for (size_t h = 0; h < kHeads; ++h) {
      float& out = a.out[(head + h) * size + i];
      out *= shrink[h];
      for (size_t s = 0; s < a.slots; ++s)
        out += a.scratch[(head + h) * a.slots + s] * load1<kType>(a.values, s * size + i);
    }
  }
}

template <Type kType>
void attend(const AttendArgs& a) {
  size_t h = 0;
  for (; h + 4 <= a.heads; h += 4) score_heads<kType, 4>(a, h);
  for (; h < a.heads; ++h) score_heads<kType, 1>(a, h);
  for (h = 0; h + 2 <= a.heads; h += 2) mix_heads<kType, 2>(a, h);
  if (h < a.heads) mix_heads<kType, 1>(a, h);
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

void attend_f32(const AttendArgs& a) { attend<Type::f32>(a); }
void attend_f16(const AttendArgs& a) { attend<Type::f16>(a); }

void to_f16(const float* x, size_t size, uint16_t* out) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) vst1_u16(out + i, to_halves(vld1q_f32(x + i)));
  for (; i < size; ++i) out[i] = vget_lane_u16(to_halves(vdupq_n_f32(x[i])), 0);
}

void from_f16(const uint16_t* in, size_t size, float* x, bool add) {
  size_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t before = add ? vld1q_f32(x + i) : vdupq_n_f32(0.0f);
    vst1q_f32(x + i, vaddq_f32(before, load4<Type::f16>(in, i)));
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
};

}  // namespace hearth
