// A block's integer sums with AVX2 (see generic/block_products.h). A vector holds four int8 of each
// of the eight rows of a group. maddubs multiplies unsigned by signed bytes and adds pairs, as
// int16.
#pragma once

#include "../generic/block_products.h"
#include "vec.h"

namespace hearth {
namespace {

inline __m256i load_bytes(const uint8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Four activations in each row.
inline __m256i broadcast_four(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm256_set1_epi32(four);
}

// Four bits: nibbles stay unsigned. The sums of pairs stay within int16 over a whole block:
// 8 additions x 2 x 15 x 127 = 30,480.
struct Avx2Nibbles {
  static constexpr size_t kBlockBytes = kQ40GroupBlock, kSteps = 4, kStepBytes = 32;
  static constexpr int32_t kOffset = 8;
  static constexpr size_t kPanelTokens = 7;
  using Tiles = std::index_sequence<4, 2, 1>;
  using Codes = __m256i;
  struct Weights {
    Codes low, high;  // columns 4 i .. 4 i + 3, and those 16 further
  };
  using Input = const int8_t*;
  using Sums = __m256i;  // of pairs

  static Input input(const int8_t* q) { return q; }
  static void start(__m256i, Sums& sums) { sums = _mm256_setzero_si256(); }
  static void load(const uint8_t* at, Weights& w) {
    const __m256i mask = _mm256_set1_epi8(15), bytes = load_bytes(at);
    w.low = _mm256_and_si256(bytes, mask);
    w.high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
  }
  template <size_t kStep>
  static void add(const Weights& w, Input q, Sums& sums) {
    const __m256i low = _mm256_maddubs_epi16(w.low, broadcast_four(q + 4 * kStep));
    const __m256i high = _mm256_maddubs_epi16(w.high, broadcast_four(q + 4 * kStep + kBlock / 2));
    sums = Avx2::in_turn(_mm256_add_epi16(_mm256_add_epi16(sums, low), high));
  }
  static void total(Sums sums, __m256i offset, __m256i (&whole)[1]) {
    whole[0] = _mm256_sub_epi32(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)), offset);
  }

  template <typename Store>
  static void unpack(const Weights& w, Store store) {
    store(0, w.low);
    store(kBlock / 2 / 4, w.high);
  }
  static Codes load_codes(const uint8_t* at) { return load_bytes(at); }
  static void store_codes(uint8_t* at, Codes codes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), codes);
  }
  static Codes quad(const int8_t* q) { return broadcast_four(q); }
  static void add_codes(Codes codes, Codes four, Sums& sums) {
    sums = Avx2::in_turn(_mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, four)));
  }
};

// Eight bits: one side must be unsigned, so the weight's sign moves to the activation. A pair is at
// most 2 x 128 x 127 = 32,512, within int16; pairs are widened before they are added.
struct Avx2Bytes {
  static constexpr size_t kBlockBytes = kQ80GroupBlock, kSteps = 8, kStepBytes = 32;
  static constexpr int32_t kOffset = 0;
  static constexpr size_t kPanelTokens = 0;
  using Tiles = std::index_sequence<4, 2, 1>;
  struct Weights {
    __m256i bytes, magnitude;
  };
  using Input = const int8_t*;
  using Sums = __m256i;

  static Input input(const int8_t* q) { return q; }
  static void start(__m256i, Sums& sums) { sums = _mm256_setzero_si256(); }
  static void load(const uint8_t* at, Weights& w) {
    w.bytes = load_bytes(at);
    w.magnitude = _mm256_abs_epi8(w.bytes);
  }
  template <size_t kStep>
  static void add(const Weights& w, Input q, Sums& sums) {
    const __m256i x = _mm256_sign_epi8(broadcast_four(q + 4 * kStep), w.bytes);
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, x);
    sums = Avx2::in_turn(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }
  static void total(Sums sums, __m256i, __m256i (&whole)[1]) { whole[0] = sums; }
};

}  // namespace
}  // namespace hearth
