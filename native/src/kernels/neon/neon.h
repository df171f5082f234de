// What the Arm kernels share. Their files are compiled for different CPUs, so every function with a
// body here lies in the unnamed namespace: each file has a copy of its own, and the linker cannot
// keep one file's instructions for all.
#pragma once

#include <arm_neon.h>

#include <cstring>
#include <utility>

#include "hearth/kernels.h"

namespace hearth {

extern const Kernels kNeonKernels;
extern const Kernels kDotprodKernels;
extern const Kernels kI8mmKernels;

// What the tables of the newer instruction sets take over, from kernels_neon.cpp.
namespace neon {
void quantize(const float* x, size_t columns, int8_t* q, float* scales, int32_t* sums);
void matmul_f32(const MatmulArgs& a);
void matmul_f16(const MatmulArgs& a);
void rms_norm(const float* x, const float* weight, size_t size, float epsilon, float* y);
void add(float* x, const float* y, size_t size);
void swiglu(float* gate, const float* up, size_t size);
void rope(float* head, const float* cos, const float* sin, size_t half);
void attend_f32(const AttendArgs& a);
void attend_f16(const AttendArgs& a);
void to_f16(const float* x, size_t size, uint16_t* out);
void from_f16(const uint16_t* in, size_t size, float* x, bool add);
void from_q80(const int8_t* q, const float* scales, size_t size, float* x, bool add);
void keys_from_q80(const int8_t* q, const float* scales, size_t head_size, size_t stride, float* x);
}  // namespace neon

// From kernels_dotprod.cpp.
namespace dotprod {
void matmul_q80(const MatmulArgs& a);
void matmul_q40(const MatmulArgs& a);
}  // namespace dotprod

namespace {

inline constexpr size_t kHalves = 2;    // vectors of four rows in a group of eight
inline constexpr size_t kHalfRows = 4;  // rows in each

// Not std::integral_constant, whose code all files would share.
template <size_t kValue>
struct Index {
  constexpr operator size_t() const { return kValue; }
};

// step(0), step(1), ... as constants: arrays of vectors stay in registers, and a constant can be
// the index of a lane.
template <size_t kCount, typename Step>
[[gnu::always_inline]] inline void unrolled(Step step) {
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>) __attribute__((always_inline)) {
    (step(Index<kIndex>{}), ...);
  }(std::make_index_sequence<kCount>{});
}

// Four f16 to f32, with the conversion that every ARMv8 has.
inline float32x4_t load_halves(const void* at) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(at))));
}

// e^x for x <= about 88; Cephes' polynomial after x = n ln 2 + r. Below -87 the result is near 0.
// NaN stays NaN.
inline float32x4_t exp4(float32x4_t x) {
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

inline float half_to_float(uint16_t half) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

// Rows half * 4 .. of a group, of which the first `rows` exist.
inline void store_rows(float* y, float32x4_t numbers, size_t half, size_t rows) {
  const size_t begin = half * kHalfRows;
  if (rows >= begin + kHalfRows) {
    vst1q_f32(y + begin, numbers);
  } else if (rows > begin) {
    float all[kHalfRows];
    vst1q_f32(all, numbers);
    std::memcpy(y + begin, all, (rows - begin) * sizeof(float));
  }
}

// A block's exact integer sums, scaled and added as in the scalar twin.
inline float32x4_t add_block(float32x4_t sums, int32x4_t whole, float32x4_t scales, float x_scale) {
  return vfmaq_f32(sums, vcvtq_f32_s32(whole), vmulq_n_f32(scales, x_scale));
}

// Nibbles, unsigned: what they are too large by (8 each) is in x_sums.
inline int8x16_t low_nibbles(uint8x16_t bytes) {
  return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
}
inline int8x16_t high_nibbles(uint8x16_t bytes) {
  return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
}

}  // namespace
}  // namespace hearth
