// What the Arm kernels share. Their files are compiled for different CPUs, so every function with a
// body here lies in the unnamed namespace: each file has a copy of its own, and the linker cannot
// keep one file's instructions for all.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "../generic/vector.h"

namespace hearth {

extern const Kernels kNeonKernels;
extern const Kernels kDotprodKernels;
extern const Kernels kI8mmKernels;

// The products with int8 activations of the newer instruction sets.
namespace dotprod {
void matmul_q80(const MatmulArgs& a);
void matmul_q40(const MatmulArgs& a);
}  // namespace dotprod

namespace i8mm {
void matmul_q80(const MatmulArgs& a);
void matmul_q40(const MatmulArgs& a);
}  // namespace i8mm

namespace {

inline constexpr size_t kHalves = 2;    // vectors of four rows in a group of eight
inline constexpr size_t kHalfRows = 4;  // rows in each

// Four f16 to f32, with the conversion that every ARMv8 has.
inline float32x4_t load_halves(const void* at) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(at))));
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
