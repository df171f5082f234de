// AVX2 (with FMA and F16C): all but the matrix products and attention, which have files of their
// own. Each function is held to its twin in kernels/scalar/kernels.cpp by tests/test_kernels.cpp.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "avx2.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

void quantize(const float* x, size_t columns, int8_t* q, float* scales, int32_t* sums) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (size_t b = 0; b < columns / kBlock; ++b, x += kBlock, q += kBlock) {
    __m256 v[4];
    // Compared as bits, in which infinity is above every number and NaN above infinity.
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    half = _mm_max_epi32(half, _mm_unpackhi_epi64(half, half));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 1));
    const float largest = _mm_cvtss_f32(_mm_castsi128_ps(half));
    if (_mm_cvtsi128_si32(half) >= 0x7f800000) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_setzero_si256());
      scales[b] = __builtin_nanf("");
      sums[b] = 0;
      continue;
    }
    const __m256 inverse = _mm256_set1_ps(largest >= kSmallestQuantized ? 127.0f / largest : 0.0f);
    __m256i whole[4];
    for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]),
                                   _mm256_add_epi32(whole[2], whole[3]));
    // packs works within 128-bit halves; the permutation puts the groups of four back in order.
    const __m256i low = _mm256_packs_epi32(whole[0], whole[1]);
    const __m256i high = _mm256_packs_epi32(whole[2], whole[3]);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 1));
    scales[b] = largest / 127.0f;
    sums[b] = 8 * _mm_cvtsi128_si32(four);
  }
}

void rms_norm(const float* x, const float* weight, size_t size, float epsilon, float* y) {
  __m256 squares = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  alignas(32) float sums[8];
  _mm256_store_ps(sums, squares);
  for (; i < size; ++i) sums[i % 8] = std::fma(x[i], x[i], sums[i % 8]);
  const float sum = sum_in_order(_mm256_load_ps(sums));
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
  for (i = 0; i + 8 <= size; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(scale));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
  }
  for (; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

void add(float* x, const float* y, size_t size) {
  size_t i = 0;
  for (; i + 8 <= size; i += 8)
    _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  for (; i < size; ++i) x[i] += y[i];
}

void swiglu(float* gate, const float* up, size_t size) {
  const __m256 one = _mm256_set1_ps(1.0f);
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 v = _mm256_loadu_ps(gate + i);
    const __m256 silu =
        _mm256_div_ps(v, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), v))));
    _mm256_storeu_ps(gate + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
  for (; i < size; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void rope(float* head, const float* cos, const float* sin, size_t half) {
  size_t i = 0;
  for (; i + 8 <= half; i += 8) {
    const __m256 a = _mm256_loadu_ps(head + i), b = _mm256_loadu_ps(head + half + i);
    const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
    _mm256_storeu_ps(head + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(head + half + i, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

void to_f16(const float* x, size_t size, uint16_t* out) {
  // With the number as second operand, min and max let a NaN through.
  const __m256 top = _mm256_set1_ps(kLargestHalf), bottom = _mm256_set1_ps(-kLargestHalf);
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 v = _mm256_max_ps(bottom, _mm256_min_ps(top, _mm256_loadu_ps(x + i)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < size; ++i) {
    const float v = x[i] > kLargestHalf    ? kLargestHalf
                    : x[i] < -kLargestHalf ? -kLargestHalf
                                           : x[i];
    out[i] = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
  }
}

void from_f16(const uint16_t* in, size_t size, float* x, bool add) {
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 before = add ? _mm256_loadu_ps(x + i) : _mm256_setzero_ps();
    _mm256_storeu_ps(x + i, _mm256_add_ps(before, load_halves(in + i)));
  }
  for (; i < size; ++i) x[i] = (add ? x[i] : 0.0f) + _cvtsh_ss(in[i]);
}

void from_q80(const int8_t* q, const float* scales, size_t size, float* x, bool add) {
  for (size_t i = 0; i < size; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + i));
    const __m256 numbers = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    const __m256 before = add ? _mm256_loadu_ps(x + i) : _mm256_setzero_ps();
    const __m256 scaled = _mm256_mul_ps(numbers, _mm256_set1_ps(scales[i / kBlock]));
    _mm256_storeu_ps(x + i, _mm256_add_ps(before, scaled));
  }
}

void keys_from_q80(const int8_t* q, const float* scales, size_t head_size, size_t stride,
                   float* x) {
  for (size_t i = 0; i < head_size; ++i, q += stride, x += stride) {
    const float* scale = scales + i / kBlock * stride;
    for (size_t s = 0; s < stride; s += 8) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + s));
      const __m256 numbers = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
      _mm256_storeu_ps(x + s, _mm256_mul_ps(numbers, _mm256_loadu_ps(scale + s)));
    }
  }
}

}  // namespace

const Kernels kAvx2Kernels = {
    .name = "avx2",
    .quantize = quantize,
    .matmul_f32 = avx2::matmul_f32,
    .matmul_f16 = avx2::matmul_f16,
    .matmul_q80 = avx2::matmul_q80,
    .matmul_q40 = avx2::matmul_q40,
    .rms_norm = rms_norm,
    .add = add,
    .swiglu = swiglu,
    .rope = rope,
    .attend_f32 = avx2::attend_f32,
    .attend_f16 = avx2::attend_f16,
    .to_f16 = to_f16,
    .from_f16 = from_f16,
    .from_q80 = from_q80,
    .keys_from_q80 = keys_from_q80,
};

}  // namespace hearth
