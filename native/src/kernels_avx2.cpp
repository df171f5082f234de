// AVX2 (with FMA and F16C). Each function is held to its twin in kernels_scalar.cpp by
// tests/test_kernels.cpp. Only this file is compiled for AVX2: nothing in it may be inline code
// that other files share, or the linker could keep this copy for all.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "hearth/kernels.h"

namespace hearth {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr size_t kBlockSums = 4;  // loads of 32 bytes in the nibbles of eight rows' blocks

__m256i load32(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

// Eight f16 to f32.
__m256 load_halves(const uint8_t* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Four int8 activations in each of the eight lanes.
__m256i broadcast4(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

void store_rows(float* y, __m256 sums, size_t rows) {
  if (rows >= kGroupRows) {
    _mm256_storeu_ps(y, sums);
    return;
  }
  alignas(32) float all[kGroupRows];
  _mm256_store_ps(all, sums);
  std::memcpy(y, all, rows * sizeof(float));
}

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

// The weights of eight rows in one column, as f32.
template <Type kType>
__m256 load_column(const uint8_t* at) {
  if constexpr (kType == Type::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  return load_halves(at);
}

// kTokens x kGroups tiles; two sums for each (even and odd columns), as in the scalar twin.
template <Type kType, size_t kTokens, size_t kGroups>
void add_column(const MatmulArgs& a, const uint8_t* w, const float* x, size_t c,
                __m256 (&sums)[kTokens][kGroups]) {
  constexpr size_t kColumn = kGroupRows * (kType == Type::f32 ? 4 : 2);
  __m256 column[kGroups];
  for (size_t g = 0; g < kGroups; ++g)
    column[g] = load_column<kType>(w + g * a.group_bytes + c * kColumn);
  for (size_t t = 0; t < kTokens; ++t) {
    const __m256 value = _mm256_broadcast_ss(x + t * a.columns + c);
    for (size_t g = 0; g < kGroups; ++g) sums[t][g] = _mm256_fmadd_ps(column[g], value, sums[t][g]);
  }
}

template <Type kType, size_t kTokens, size_t kGroups>
void float_tile(const MatmulArgs& a, size_t token, size_t group) {
  __m256 even[kTokens][kGroups], odd[kTokens][kGroups];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t g = 0; g < kGroups; ++g) even[t][g] = odd[t][g] = _mm256_setzero_ps();
  }
  const float* x = a.x + token * a.columns;
  const uint8_t* w = a.weights + group * a.group_bytes;
  size_t c = 0;
  for (; c + 2 <= a.columns; c += 2) {
    // Column by column: with both at once, a tile of 3 x 2 has no registers left.
    add_column<kType, kTokens, kGroups>(a, w, x, c, even);
    add_column<kType, kTokens, kGroups>(a, w, x, c + 1, odd);
  }
  if (c < a.columns) add_column<kType, kTokens, kGroups>(a, w, x, c, even);
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t g = 0; g < kGroups; ++g) {
      const size_t row = (group + g) * kGroupRows;
      store_rows(a.y + (token + t) * a.y_stride + row, _mm256_add_ps(even[t][g], odd[t][g]),
                 a.rows - row);
    }
  }
}

template <Type kType, size_t kGroups>
void float_groups(const MatmulArgs& a, size_t group) {
  size_t t = 0;
  for (; t + 3 <= a.tokens; t += 3) float_tile<kType, 3, kGroups>(a, t, group);
  if (t + 2 == a.tokens) float_tile<kType, 2, kGroups>(a, t, group);
  if (t + 1 == a.tokens) float_tile<kType, 1, kGroups>(a, t, group);
}

// Two groups at once: for one token their four chains of additions hide the latency; for three, six
// fused multiply-adds share five loads.
template <Type kType>
void matmul_floats(const MatmulArgs& a) {
  size_t g = 0;
  for (; g + 2 <= a.groups; g += 2) float_groups<kType, 2>(a, g);
  if (g < a.groups) float_groups<kType, 1>(a, g);
}

// Four bits: nibbles stay unsigned, the offset of 8 is taken off once per block by x_sums. The sums
// of pairs stay within int16 over a whole block: 8 additions x 2 x 15 x 127 = 30,480.
template <size_t kTokens>
void q40_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_ps();
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kGroupRows * kQ40BlockBytes) {
    const __m256 scales = load_halves(block);
    __m256i low[kBlockSums], high[kBlockSums];
    for (size_t i = 0; i < kBlockSums; ++i) {
      const __m256i bytes = load32(block + 16 + 32 * i);
      low[i] = _mm256_and_si256(bytes, mask);
      high[i] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    }
    for (size_t t = 0; t < kTokens; ++t) {
      const int8_t* x = a.xq + (token + t) * a.columns + b * kBlock;
      __m256i pairs = _mm256_maddubs_epi16(low[0], broadcast4(x));
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high[0], broadcast4(x + 16)));
      for (size_t i = 1; i < kBlockSums; ++i) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(low[i], broadcast4(x + 4 * i)));
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high[i], broadcast4(x + 16 + 4 * i)));
      }
      const size_t at = (token + t) * blocks + b;
      const __m256i whole =
          _mm256_sub_epi32(_mm256_madd_epi16(pairs, ones), _mm256_set1_epi32(a.x_sums[at]));
      sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole),
                                _mm256_mul_ps(scales, _mm256_set1_ps(a.x_scales[at])), sums[t]);
    }
  }
  const size_t row = group * kGroupRows;
  for (size_t t = 0; t < kTokens; ++t)
    store_rows(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row);
}

// Eight bits: maddubs wants one side unsigned, so the weight's sign moves to the activation. A pair
// is at most 2 x 128 x 127 = 32,512, within int16; pairs are widened before they are added.
template <size_t kTokens>
void q80_tile(const MatmulArgs& a, size_t token, size_t group) {
  const size_t blocks = a.columns / kBlock;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_ps();
  const uint8_t* block = a.weights + group * a.group_bytes;
  for (size_t b = 0; b < blocks; ++b, block += kGroupRows * kQ80BlockBytes) {
    const __m256 scales = load_halves(block);
    __m256i whole[kTokens];
    for (size_t t = 0; t < kTokens; ++t) whole[t] = _mm256_setzero_si256();
    for (size_t i = 0; i < kBlock / 4; ++i) {
      const __m256i bytes = load32(block + 16 + 32 * i);
      const __m256i magnitude = _mm256_abs_epi8(bytes);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m256i x = broadcast4(a.xq + (token + t) * a.columns + b * kBlock + 4 * i);
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, bytes));
        whole[t] = _mm256_add_epi32(whole[t], _mm256_madd_epi16(pairs, ones));
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      const __m256 scale =
          _mm256_mul_ps(scales, _mm256_set1_ps(a.x_scales[(token + t) * blocks + b]));
      sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[t]), scale, sums[t]);
    }
  }
  const size_t row = group * kGroupRows;
  for (size_t t = 0; t < kTokens; ++t)
    store_rows(a.y + (token + t) * a.y_stride + row, sums[t], a.rows - row);
}

// A group's weights stay in the first-level cache while all tokens pass over them.
template <auto kTile4, auto kTile2, auto kTile1>
void matmul_blocks(const MatmulArgs& a) {
  for (size_t g = 0; g < a.groups; ++g) {
    size_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) kTile4(a, t, g);
    for (; t + 2 <= a.tokens; t += 2) kTile2(a, t, g);
    if (t < a.tokens) kTile1(a, t, g);
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
  for (size_t s = 0; s < kSlots; ++s) {
    for (__m256& sum : sums[s]) sum = _mm256_setzero_ps();
  }
  for (size_t i = 0; i < wide; i += 8) {
    __m256 key[kSlots];
    for (size_t s = 0; s < kSlots; ++s) key[s] = load8<kType>(a.keys, (slot + s) * size + i);
    for (size_t h = 0; h < kHeads; ++h) {
      const __m256 query = _mm256_loadu_ps(q + h * size + i);
      for (size_t s = 0; s < kSlots; ++s) sums[s][h] = _mm256_fmadd_ps(query, key[s], sums[s][h]);
    }
  }
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

// scratch = e^(score - largest); returns how much what was summed before shrinks.
float weigh(const AttendArgs& a, size_t head) {
  float* scores = a.scratch + head * a.slots;
  float largest = a.largest[head];
  for (size_t s = 0; s < a.slots; ++s) largest = scores[s] > largest ? scores[s] : largest;
  const float shrink = std::exp(a.largest[head] - largest);
  float sum = a.sum[head] * shrink;
  size_t s = 0;
  for (; s + 8 <= a.slots; s += 8) {
    const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + s), _mm256_set1_ps(largest)));
    _mm256_storeu_ps(scores + s, e);
    sum += sum_in_order(e);
  }
  for (; s < a.slots; ++s) {
    scores[s] = std::exp(scores[s] - largest);
    sum += scores[s];
  }
  a.largest[head] = largest;
  a.sum[head] = sum;
  return shrink;
}

// out = out * shrink + weights x values for kHeads heads; 8 * kWide numbers of each head at a time
// stay in registers over the whole page.
template <Type kType, size_t kHeads, size_t kWide>
void mix_tile(const AttendArgs& a, size_t head, const float* shrink, size_t i) {
  __m256 acc[kHeads][kWide];
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t k = 0; k < kWide; ++k) {
      const float* at = a.out + (head + h) * a.head_size + i + 8 * k;
      acc[h][k] = _mm256_mul_ps(_mm256_loadu_ps(at), _mm256_set1_ps(shrink[h]));
    }
  }
  for (size_t s = 0; s < a.slots; ++s) {
    __m256 value[kWide];
    for (size_t k = 0; k < kWide; ++k)
      value[k] = load8<kType>(a.values, s * a.head_size + i + 8 * k);
    for (size_t h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_broadcast_ss(a.scratch + (head + h) * a.slots + s);
      for (size_t k = 0; k < kWide; ++k) acc[h][k] = _mm256_fmadd_ps(weight, value[k], acc[h][k]);
    }
  }
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t k = 0; k < kWide; ++k)
      _mm256_storeu_ps(a.out + (head + h) * a.head_size + i + 8 * k, acc[h][k]);
  }
}

template <Type kType, size_t kHeads>
void mix_heads(const AttendArgs& a, size_t head, const float* shrink) {
  size_t i = 0;
  for (; i + 32 <= a.head_size; i += 32) mix_tile<kType, kHeads, 4>(a, head, shrink, i);
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
  for (h = 0; h + 2 <= a.heads; h += 2) {
    const float shrink[2] = {weigh(a, h), weigh(a, h + 1)};
    mix_heads<kType, 2>(a, h, shrink);
  }
  if (h < a.heads) {
    const float shrink[1] = {weigh(a, h)};
    mix_heads<kType, 1>(a, h, shrink);
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
    .matmul_f32 = matmul_floats<Type::f32>,
    .matmul_f16 = matmul_floats<Type::f16>,
    .matmul_q80 = matmul_blocks<q80_tile<4>, q80_tile<2>, q80_tile<1>>,
    .matmul_q40 = matmul_blocks<q40_tile<4>, q40_tile<2>, q40_tile<1>>,
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
