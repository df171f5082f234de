// Bytes and integer sums with NEON (see generic/codecs.h and block_products.h). Two vectors hold
// four int8 of each of the eight rows of a group, four rows each.
#pragma once

#include "../generic/block_products.h"
#include "vec.h"

namespace hearth {
namespace {

inline constexpr size_t kHalves = 2;  // vectors of four rows in a group of eight

// Parts that the products of all Arm instruction sets share. Codes are int8 in every type:
// unsigned ones are below 128.
struct NeonCodes {
  using V = Neon;
  struct Bytes {
    uint8x16_t half[kHalves];
  };
  using At = const uint8_t*;
  static constexpr size_t kGroups = 1;
  static constexpr size_t kPanelTokens = 0;
  static constexpr int32_t kSignedOffset = 0;

  static At at(const uint8_t* group, size_t, size_t) { return group; }
  static void load_halves(const uint8_t* at, float32x4_t (&out)[kHalves]) {
    unrolled<kHalves>(
        [&](auto h) { out[h] = V::load(reinterpret_cast<const uint16_t*>(at) + V::kWidth * h); });
  }
  static Bytes load(const uint8_t* at) { return {{vld1q_u8(at), vld1q_u8(at + 16)}}; }
  static void store(uint8_t* at, Bytes bytes) {
    vst1q_u8(at, bytes.half[0]);
    vst1q_u8(at + 16, bytes.half[1]);
  }
  template <int kShift, int kMask>
  static Bytes bits(Bytes bytes) {
    return each(bytes, [](uint8x16_t v) {
      if constexpr (kShift > 0) v = vshrq_n_u8(v, kShift);
      return kShift > 0 && (255 >> kShift) == kMask ? v : vandq_u8(v, vdupq_n_u8(kMask));
    });
  }
  template <int kShift, int kMask>
  static Bytes raised(Bytes bytes) {
    return each(bytes, [](uint8x16_t v) {
      if constexpr (kShift > 0) v = vshlq_n_u8(v, kShift);
      return vandq_u8(v, vdupq_n_u8(kMask));
    });
  }
  template <int kShift, int kMask>
  static Bytes word_bits(Bytes words) {
    return each(words, [](uint8x16_t v) {
      uint32x4_t word = vreinterpretq_u32_u8(v);
      if constexpr (kShift > 0) word = vshrq_n_u32(word, kShift);
      if constexpr (kShift < 0) word = vshlq_n_u32(word, -kShift);
      return vreinterpretq_u8_u32(vandq_u32(word, vdupq_n_u32(kMask)));
    });
  }
  static Bytes both(Bytes a, Bytes b) {
    return {{vorrq_u8(a.half[0], b.half[0]), vorrq_u8(a.half[1], b.half[1])}};
  }
  static Bytes less(Bytes bytes, uint8_t number) {
    return each(bytes, [=](uint8x16_t v) { return vsubq_u8(v, vdupq_n_u8(number)); });
  }
  static Bytes lookup(const int8_t (&table)[16], Bytes nibbles) {
    const uint8x16_t values = vreinterpretq_u8_s8(vld1q_s8(table));
    return each(nibbles, [=](uint8x16_t v) { return vqtbl1q_u8(values, v); });
  }
  static Bytes from_int8(Bytes bytes) { return bytes; }
  template <size_t kQuad>
  static Bytes fifths(Bytes words) {
    constexpr uint32_t kBits = 0x08040201u << (kQuad % 2 * 4);
    const uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(kBits));
    const uint32_t byte = kQuad / 2 * 0x01010101u;
    const uint32x4_t at = vaddq_u32(vdupq_n_u32(byte), row_offsets());
    return each(words, [=](uint8x16_t v) {
      const uint8x16_t bytes = vqtbl1q_u8(v, vreinterpretq_u8_u32(at));
      return vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(16));
    });
  }
  static Bytes pairs(const uint8_t* at) {
    const uint16x8_t eight = vreinterpretq_u16_u8(vld1q_u8(at));
    return {{vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(eight))),
             vreinterpretq_u8_u32(vmovl_high_u16(eight))}};
  }
  static void exponents(const uint8_t* at, float32x4_t (&powers)[kHalves]) {
    const uint16x8_t eight = vmovl_u8(vld1_u8(at));
    const uint32x4_t four[kHalves] = {vmovl_u16(vget_low_u16(eight)), vmovl_high_u16(eight)};
    unrolled<kHalves>([&](auto h) {
      // Where an exponent is special, the first bit of the mantissa makes 2^-127, or NaN.
      const uint32x4_t special =
          vorrq_u32(vceqzq_u32(four[h]), vceqq_u32(four[h], vdupq_n_u32(255)));
      const uint32x4_t mantissa = vandq_u32(special, vdupq_n_u32(0x00400000));
      powers[h] = vreinterpretq_f32_u32(vorrq_u32(vshlq_n_u32(four[h], 23), mantissa));
    });
  }

  // A scale of each row, as int32.
  struct Scale {
    int32x4_t half[kHalves];
  };
  template <size_t kByte>
  static Scale scale(Bytes words) {
    return each_scale([&](size_t h) {
      const uint32x4_t word = vreinterpretq_u32_u8(words.half[h]);
      uint32x4_t byte = word;
      if constexpr (kByte > 0) byte = vshrq_n_u32(word, 8 * kByte);
      return vreinterpretq_s32_u32(vandq_u32(byte, vdupq_n_u32(255)));
    });
  }
  template <size_t kByte>
  static Scale signed_scale(Bytes words) {
    return each_scale([&](size_t h) {
      int32x4_t word = vreinterpretq_s32_u8(words.half[h]);
      if constexpr (kByte < 3) word = vshlq_n_s32(word, 24 - 8 * kByte);
      return vshrq_n_s32(word, 24);
    });
  }
  static Scale word_scale(Bytes words, int32_t less) {
    return each_scale([&](size_t h) {
      return vsubq_s32(vreinterpretq_s32_u8(words.half[h]), vdupq_n_s32(less));
    });
  }
  static void to_float(const Scale& scale, float32x4_t (&out)[kHalves]) {
    unrolled<kHalves>([&](auto h) { out[h] = vcvtq_f32_s32(scale.half[h]); });
  }

  // The activations of a token in a part.
  struct Input {
    int8x16_t q[2];
  };
  static Input input(const int8_t* q) { return {{vld1q_s8(q), vld1q_s8(q + 16)}}; }

  using Side = HalfSums;
  template <typename C>
  static Side side(HalfSums sums) {
    return sums;
  }

 protected:
  // `whole`, less what the offset of the codes adds, as f32.
  template <typename C>
  static void without_offset(const int32x4_t (&whole)[kHalves], Side side, const Scale (&scales)[2],
                             float32x4_t (&out)[kHalves]) {
    const int32_t both = C::kOffset * (side.first + side.second);
    unrolled<kHalves>([&](auto h) {
      int32x4_t sum = whole[h];
      if constexpr (C::kOffset != 0) {
        if constexpr (C::kScales == 0) {
          sum = vsubq_s32(sum, vdupq_n_s32(both));
        } else if constexpr (C::kScales == 1) {
          sum = vsubq_s32(sum, vmulq_n_s32(scales[0].half[h], both));
        } else {
          sum = vsubq_s32(sum, vmulq_n_s32(scales[0].half[h], C::kOffset * side.first));
          sum = vsubq_s32(sum, vmulq_n_s32(scales[1].half[h], C::kOffset * side.second));
        }
      }
      out[h] = vcvtq_f32_s32(sum);
    });
  }

 private:
  template <typename Step>
  [[gnu::always_inline]] static Bytes each(const Bytes& bytes, Step step) {
    return {{step(bytes.half[0]), step(bytes.half[1])}};
  }
  template <typename Step>
  [[gnu::always_inline]] static Scale each_scale(Step step) {
    return {{step(0), step(1)}};
  }
  // The first byte of each word, in all of its bytes.
  static uint32x4_t row_offsets() {
    const uint32_t offsets[4] = {0, 0x04040404, 0x08080808, 0x0c0c0c0c};
    return vld1q_u32(offsets);
  }
};

// Sums of NEON as every CPU has it: products as int16, as many in each lane as fit; then pairs of
// them as int32.
struct NeonBytes : NeonCodes {
  using Tiles = std::index_sequence<2, 1>;  // registers do not hold more

  // Quads whose products a lane of int16 holds.
  template <typename C>
  static constexpr size_t run() {
    for (size_t quads = C::kScales == 2 ? 4 : 8; quads > 1; quads /= 2) {
      if (quads * C::kLargest * 127 <= 32767) return quads;
    }
    return 1;
  }

  template <typename C>
  struct Sums {
    int16x8_t products[kHalves][2];  // two rows in each vector, four lanes a row
    int32x4_t lanes[kHalves][2];     // two lanes a row
    int32x4_t whole[kHalves];
  };

  template <typename C, size_t kQuad>
  [[gnu::always_inline]] static void add(const Bytes& codes, const Input& input, Side,
                                         const Scale (&scales)[2], Sums<C>& sums) {
    constexpr size_t kRun = run<C>(), kScaled = C::kScales == 2 ? kQuads / 2 : kQuads;
    const int8x16_t four =
        vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(input.q[kQuad / 4]), kQuad % 4));
    unrolled<kHalves>([&](auto h) {
      const int8x16_t w = vreinterpretq_s8_u8(codes.half[h]);
      int16x8_t(&products)[2] = sums.products[h];
      if constexpr (kQuad % kRun == 0) {
        products[0] = vmull_s8(vget_low_s8(w), vget_low_s8(four));
        products[1] = vmull_high_s8(w, four);
      } else {
        products[0] = vmlal_s8(products[0], vget_low_s8(w), vget_low_s8(four));
        products[1] = vmlal_high_s8(products[1], w, four);
      }
      if constexpr (kQuad % kRun != kRun - 1) return;
      int32x4_t(&lanes)[2] = sums.lanes[h];
      unrolled<2>([&](auto k) {
        if constexpr (kQuad % kScaled < kRun)
          lanes[k] = vpaddlq_s16(products[k]);
        else
          lanes[k] = vpadalq_s16(lanes[k], products[k]);
      });
      if constexpr (kQuad % kScaled != kScaled - 1) return;
      const int32x4_t rows = vpaddq_s32(lanes[0], lanes[1]);
      if constexpr (C::kScales == 0)
        sums.whole[h] = rows;
      else if constexpr (kQuad < kScaled)
        sums.whole[h] = vmulq_s32(rows, scales[0].half[h]);
      else
        sums.whole[h] = vmlaq_s32(sums.whole[h], rows, scales[1].half[h]);
    });
  }
  template <typename C>
  static void value(const Sums<C>& sums, Side side, const Scale (&scales)[2],
                    float32x4_t (&out)[kHalves]) {
    without_offset<C>(sums.whole, side, scales, out);
  }
};

}  // namespace
}  // namespace hearth
