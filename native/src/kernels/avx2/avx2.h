// What the files of AVX2 kernels share. Only they are compiled for AVX2, so nothing here may
// have external linkage but declarations: the linker could keep an AVX2 copy of an inline function
// for all.
#pragma once

#include <immintrin.h>

#include "hearth/kernels.h"

namespace hearth {
namespace {

// Eight f16 to f32.
inline __m256 load_halves(const void* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

}  // namespace

namespace avx2 {

void matmul_f32(const MatmulArgs& a);
void matmul_f16(const MatmulArgs& a);
void matmul_q80(const MatmulArgs& a);
void matmul_q40(const MatmulArgs& a);

}  // namespace avx2
}  // namespace hearth
