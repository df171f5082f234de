// AVX2 (with FMA and F16C): all but the matrix products, which are in kernels_avx2_products.cpp.
// Each function is held to its twin in kernels_scalar.cpp by tests/test_kernels.cpp.

#include "kernels_avx2.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;

float sum_in_order(__m256 v) {
  alignas(32) float all[8];
  _mm256_store_ps(all, v);
  float sum = 0.0f;
  for (float each : all) sum += each;
  return sum;
}

// e^x for x <= about 88; Cephes' polynomial after x = n ln 2 + r. Below -87 the result is near 0.
__m256 exp8(__m256 x) {
  // min and max give their second operand where one is NaN: so NaN stays NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.0f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

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

template <Type kType>
__m256 load8(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32)
    return _mm256_loadu_ps(static_cast<const float*>(numbers) + index);
  return load_halves(
      reinterpret_cast<const uint8_t*>(static_cast<const uint16_t*>(numbers) + index));
}

template <Type kType>
float load1(const void* numbers, size_t index) {
  if constexpr (kType == Type::f32) return static_cast<const float*>(numbers)[index];
  return _cvtsh_ss(static_cast<const uint16_t*>(numbers)[index]);
}

// Sums of eight numbers each, of four vectors at once: every sum is ((0+1)+(2+3)) + ((4+5)+(6+7)).
__m128 sum_four(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// Scores of kHeads heads (from `head`) with kSlots slots (from `slot`). Each score is summed in the
// same order whatever the tile: how heads are dealt to threads must not show in the numbers.
template <Type kType, size_t kHeads, size_t kSlots>
void score_tile(const AttendArgs& a, size_t head, size_t slot) {
  const size_t size = a.head_size, wide = size / 8 * 8;
  const float* q = a.q + head * size;
  __m256 sums[kSlots][4];
#pragma GCC unroll 8
  for (size_t i = 0; i < 4 * kSlots; ++i) sums[i / 4][i % 4] = _mm256_setzero_ps();
  for (size_t i = 0; i < wide; i += 8) {
    __m256 key[kSlots];
#pragma GCC unroll 4
    for (size_t s = 0; s < kSlots; ++s) key[s] = load8<kType>(a.keys, (slot + s) * size + i);
#pragma GCC unroll 4
    for (size_t h = 0; h < kHeads; ++h) {
      const __m256 query = _mm256_loadu_ps(q + h * size + i);
#pragma GCC unroll 4
      for (size_t s = 0; s < kSlots; ++s) sums[s][h] = _mm256_fmadd_ps(query, key[s], sums[s][h]);
    }
  }
#pragma GCC unroll 4
  for (size_t s = 0; s < kSlots; ++s) {
    alignas(16) float scores[4];
    _mm_store_ps(scores, sum_four(sums[s][0], sums[s][1], sums[s][2], sums[s][3]));
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t i = wide; i < size; ++i)
        scores[h] += q[h * size + i] * load1<kType>(a.keys, (slot + s) * size + i);
      a.scratch[(head + h) * a.slots + slot + s] = scores[h];
    }
  }
}

template <Type kType, size_t kHeads>
void score_heads(const AttendArgs& a, size_t head) {
  size_t s = 0;
  for (; s + 2 <= a.slots; s += 2) score_tile<kType, kHeads, 2>(a, head, s);
  if (s < a.slots) score_tile<kType, kHeads, 1>(a, head, s);
}

// The largest of the eight; a NaN is passed over, as by the comparison in the scalar twin.
float largest_of(__m256 v) {
  alignas(32) float all[8];
  _mm256_store_ps(all, v);
  float largest = all[0];
  for (float each : all) largest = each > largest ? each : largest;
  return largest;
}

// scratch = e^(score - largest); returns how much what was summed before shrinks.
float weigh(const AttendArgs& a, size_t head) {
  float* scores = a.scratch + head * a.slots;
  const size_t whole = a.slots / 8 * 8;
  // The rest stands in a vector of its own, behind it scores whose weight is nothing.
  alignas(32) float rest[8];
  std::fill_n(rest, 8, -std::numeric_limits<float>::infinity());
  std::memcpy(rest, scores + whole, (a.slots - whole) * sizeof(float));
  __m256 top = _mm256_max_ps(_mm256_load_ps(rest), _mm256_set1_ps(a.largest[head]));
  for (size_t s = 0; s < whole; s += 8) top = _mm256_max_ps(_mm256_loadu_ps(scores + s), top);
  const float largest = largest_of(top);
  const __m256 offset = _mm256_set1_ps(largest);
  __m256 sums = _mm256_setzero_ps();
  for (size_t s = 0; s < whole; s += 8) {
    const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + s), offset));
    _mm256_storeu_ps(scores + s, e);
    sums = _mm256_add_ps(sums, e);
  }
  if (whole < a.slots) {
    _mm256_store_ps(rest, exp8(_mm256_sub_ps(_mm256_load_ps(rest), offset)));
    std::fill_n(rest + (a.slots - whole), 8 - (a.slots - whole), 0.0f);
    std::memcpy(scores + whole, rest, (a.slots - whole) * sizeof(float));
    sums = _mm256_add_ps(sums, _mm256_load_ps(rest));
  }
  const float shrink = std::exp(a.largest[head] - largest);
  a.largest[head] = largest;
  a.sum[head] = a.sum[head] * shrink + sum_in_order(sums);
  return shrink;
}

// out = out * shrink + weights x values for kHeads heads; 8 * kWide numbers of each head at a time
// stay in registers over the whole page.
template <Type kType, size_t kHeads, size_t kWide>
void mix_tile(const AttendArgs& a, size_t head, const float* shrink, size_t i) {
  __m256 acc[kHeads][kWide];
#pragma GCC unroll 4
  for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (size_t k = 0; k < kWide; ++k) {
      const float* at = a.out + (head + h) * a.head_size + i + 8 * k;
      acc[h][k] = _mm256_mul_ps(_mm256_loadu_ps(at), _mm256_set1_ps(shrink[h]));
    }
  }
  for (size_t s = 0; s < a.slots; ++s) {
    __m256 value[kWide];
#pragma GCC unroll 4
    for (size_t k = 0; k < kWide; ++k)
      value[k] = load8<kType>(a.values, s * a.head_size + i + 8 * k);
#pragma GCC unroll 4
    for (size_t h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_broadcast_ss(a.scratch + (head + h) * a.slots + s);
#pragma GCC unroll 4
      for (size_t k = 0; k < kWide; ++k) acc[h][k] = _mm256_fmadd_ps(weight, value[k], acc[h][k]);
    }
  }
#pragma GCC unroll 4
  for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (size_t k = 0; k < kWide; ++k)
      _mm256_storeu_ps(a.out + (head + h) * a.head_size + i + 8 * k, acc[h][k]);
  }
}

template <Type kType, size_t kHeads>
void mix_heads(const AttendArgs& a, size_t head) {
  constexpr size_t kWide = 4;
  float shrink[kHeads];
  for (size_t h = 0; h < kHeads; ++h) shrink[h] = weigh(a, head + h);
  size_t i = 0;
  for (; i + 8 * kWide <= a.head_size; i += 8 * kWide)
    mix_tile<kType, kHeads, kWide>(a, head, shrink, i);
  for (; i + 8 <= a.head_size; i += 8) mix_tile<kType, kHeads, 1>(a, head, shrink, i);
  for (; i < a.head_size; ++i) {
    for (size_t h = 0; h < kHeads; ++h) {
      float* out = a.out + (head + h) * a.head_size + i;
      float acc = *out * shrink[h];
      for (size_t s = 0; s < a.slots; ++s) {
        const float weight = a.scratch[(head + h) * a.slots + s];
        acc = std::fma(weight, load1<kType>(a.values, s * a.head_size + i), acc);
      }
      *out = acc;
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
    _mm256_storeu_ps(x + i, _mm256_add_ps(before, load8<Type::f16>(in, i)));
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
    .attend_f32 = attend<Type::f32>,
    .attend_f16 = attend<Type::f16>,
    .to_f16 = to_f16,
    .from_f16 = from_f16,
    .from_q80 = from_q80,
};

}  // namespace hearth
