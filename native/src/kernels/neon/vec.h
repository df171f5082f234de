// The vector trait of NEON as every ARMv8-A CPU has it (see generic/vector.h).
#pragma once

#include <arm_neon.h>

#include "../generic/vector.h"

namespace hearth {
namespace {

struct Neon {
  using Float = float32x4_t;
  using Int = int32x4_t;
  static constexpr size_t kWidth = 4;

  // Attention: at most 24 sums; the rest of the 32 registers holds the factors.
  static constexpr size_t kPageQueries = 4;
  static constexpr size_t page_vectors(size_t queries) { return queries > 3 ? 4 : 8; }
  static constexpr bool kSumsOfLanes = false;

  // Float products: what is loaded and converted serves four tokens. Panels and prefetching have
  // not been measured on Arm.
  using FloatTiles = std::index_sequence<4, 3, 2, 1>;
  static constexpr size_t kFloatTileGroups = 1;
  static constexpr size_t kPanelTokens = 0;
  static constexpr size_t kAhead = 0;
  static constexpr size_t kFloatAhead = 0;

  static Float zero() { return vdupq_n_f32(0.0f); }
  static Float broadcast(float value) { return vdupq_n_f32(value); }
  static Float load(const float* at) { return vld1q_f32(at); }
  static Float load(const uint16_t* at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }
  static Float load(const Bfloat* at) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(at)), 16));
  }
  static void store(float* at, Float v) { vst1q_f32(at, v); }
  static void store(uint16_t* at, Float v) { vst1_u16(at, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static float to_float(float value) { return value; }
  static float to_float(uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
  }

  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float fnma(Float a, Float b, Float c) { return vfmsq_f32(c, a, b); }
  static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Float clamp(Float v, float low, float high) {
    return vmaxq_f32(vminq_f32(v, broadcast(high)), broadcast(low));
  }
  static Float round(Float v) { return vrndnq_f32(v); }
  // Four activations, of which an instruction can take one by its lane.
  using FourFloats = float32x4_t;
  static FourFloats load_four(const float* at) { return vld1q_f32(at); }
  template <size_t kLane>
  static Float fma_lane(Float a, FourFloats four, Float c) {
    return vfmaq_laneq_f32(c, a, four, kLane);
  }
  // Needs no help: these files are compiled without scheduling ahead of registers.
  template <typename Vector>
  static Vector in_turn(Vector v) {
    return v;
  }
  // 2^n for an integer n of the normal range.
  static Float power_of_two(Float n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(to_int(n), vdupq_n_s32(127)), 23));
  }
  static float sum(Float v) { return vaddvq_f32(v); }

  static Int broadcast_int(int32_t value) { return vdupq_n_s32(value); }
  static Int zero_int() { return vdupq_n_s32(0); }
  static Float from_int(Int v) { return vcvtq_f32_s32(v); }
  static Int to_int(Float v) { return vcvtnq_s32_f32(v); }
  static Int add(Int a, Int b) { return vaddq_s32(a, b); }
  static Int sub(Int a, Int b) { return vsubq_s32(a, b); }
  static Int max(Int a, Int b) { return vmaxq_s32(a, b); }
  static Int magnitude_bits(Float v) { return vreinterpretq_s32_f32(vabsq_f32(v)); }
  static int32_t largest(Int v) { return vmaxvq_s32(v); }
  static int32_t sum(Int v) { return vaddvq_s32(v); }
  // A block of elements that are within int8.
  static void store_int8(int8_t* at, const Int (&v)[8]) {
    int8x8_t eight[4];
    unrolled<4>([&](auto i) {
      eight[i] = vmovn_s16(vcombine_s16(vmovn_s32(v[2 * i]), vmovn_s32(v[2 * i + 1])));
    });
    vst1q_s8(at, vcombine_s8(eight[0], eight[1]));
    vst1q_s8(at + 16, vcombine_s8(eight[2], eight[3]));
  }
  static void load_eight(const int8_t* at, Float (&out)[2]) {
    const int16x8_t eight = vmovl_s8(vld1_s8(at));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(eight));
  }
};

}  // namespace
}  // namespace hearth
