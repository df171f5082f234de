// Bytes and integer sums with AVX2 (see generic/codecs.h and block_products.h). A vector holds four
// int8 of each of the eight rows of a group. maddubs multiplies unsigned by signed bytes and adds
// pairs, as int16; madd multiplies those by a scale and adds pairs, as int32.
#pragma once

#include <bit>

#include "../generic/block_products.h"
#include "vec.h"

namespace hearth {
namespace {

// Parts that products with other instructions share.
struct Avx2Codes {
  using V = Avx2;
  using Bytes = __m256i;
  using At = const uint8_t*;
  static constexpr size_t kGroups = 1;
  // Fewer tokens come in products of two groups, too few to make up for what a panel copies.
  static constexpr size_t kPanelTokens = 9;
  // A run takes 9 to 13 KiB of the first-level cache, and its activations 3.
  static constexpr size_t kTileTokens = 4, kTileStripes = 2, kRunParts = 16;
  using Tiles = std::index_sequence<4, 3, 2, 1>;

  static At at(const uint8_t* group, size_t, size_t) { return group; }
  static Bytes load(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static Bytes load_panel(const uint8_t* at) { return load(at); }
  static void load_halves(const uint8_t* at, __m256 (&out)[1]) {
    out[0] = V::load(reinterpret_cast<const uint16_t*>(at));
  }
  static void store(uint8_t* at, Bytes bytes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), bytes);
  }
  // Shifts of 16 bits carry bits into a neighbour, where the mask drops them.
  template <int kShift, int kMask>
  static Bytes bits(Bytes bytes) {
    if constexpr (kShift > 0) bytes = _mm256_srli_epi16(bytes, kShift);
    return _mm256_and_si256(bytes, _mm256_set1_epi8(static_cast<char>(kMask)));
  }
  template <int kShift, int kMask>
  static Bytes raised(Bytes bytes) {
    if constexpr (kShift > 0) bytes = _mm256_slli_epi16(bytes, kShift);
    return _mm256_and_si256(bytes, _mm256_set1_epi8(static_cast<char>(kMask)));
  }
  template <int kShift, int kMask>
  static Bytes word_bits(Bytes words) {
    words = kShift < 0 ? _mm256_slli_epi32(words, -kShift) : _mm256_srli_epi32(words, kShift);
    return _mm256_and_si256(words, _mm256_set1_epi32(kMask));
  }
  static Bytes both(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
  static Bytes less(Bytes bytes, char number) {
    return _mm256_sub_epi8(bytes, _mm256_set1_epi8(number));
  }
  static Bytes lookup(const int8_t (&table)[16], Bytes nibbles) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), nibbles);
  }
  template <size_t kQuad>
  static Bytes fifths(Bytes words) {
    constexpr int kByte = kQuad / 2, kFirst = kQuad % 2 * 4;
    const Bytes bytes = _mm256_shuffle_epi8(words, each_word(kByte, kByte, kByte, kByte));
    const Bytes bit = _mm256_set1_epi32(0x08040201 << kFirst);
    const Bytes is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return _mm256_and_si256(is_set, _mm256_set1_epi8(16));
  }
  static Bytes pairs(const uint8_t* at) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static void exponents(const uint8_t* at, __m256 (&powers)[1]) {
    const Bytes e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    // Where an exponent is special, the first bit of the mantissa makes 2^-127, or NaN.
    const Bytes special = _mm256_or_si256(_mm256_cmpeq_epi32(e, _mm256_setzero_si256()),
                                          _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255)));
    const Bytes mantissa = _mm256_and_si256(special, _mm256_set1_epi32(0x00400000));
    powers[0] = _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(e, 23), mantissa));
  }

 protected:
  // Indices of a shuffle for the bytes of each word, of four words.
  static __m256i each_word(int a, int b, int c, int d) {
    const int32_t word =
        a | b << 8 | c << 16 | static_cast<int32_t>(static_cast<uint32_t>(d) << 24);
    const __m256i four = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                           0x08080808, 0x0c0c0c0c);
    return _mm256_add_epi8(_mm256_set1_epi32(word), four);
  }
};

struct Avx2Bytes : Avx2Codes {
  static constexpr int32_t kSignedOffset = 0;
  static Bytes from_int8(Bytes bytes) { return bytes; }

  // The scale twice, as int16.
  using Scale = __m256i;
  template <size_t kByte>
  static Scale scale(Bytes words) {
    constexpr int kZero = 0x80;
    return _mm256_shuffle_epi8(words, each_word(kByte, kZero, kByte, kZero));
  }
  template <size_t kByte>
  static Scale signed_scale(Bytes words) {
    constexpr int kZero = 0x80;
    return _mm256_srai_epi16(_mm256_shuffle_epi8(words, each_word(kZero, kByte, kZero, kByte)), 8);
  }
  static Scale word_scale(Bytes words, int32_t less) {
    words = _mm256_sub_epi32(words, _mm256_set1_epi32(less));
    return _mm256_shuffle_epi8(words, each_word(0, 1, 0, 1));
  }
  static void to_float(Scale scale, __m256 (&out)[1]) {
    out[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(scale, 16));
  }
  static Scale load_scale(const int32_t* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  }
  static void store_scale(Scale scale, int32_t* at) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), scale);
  }

  using Input = const int8_t*;
  static Input input(const int8_t* q) { return q; }
  using Side = HalfSums;
  template <typename C>
  static Side side(HalfSums sums) {
    return sums;
  }

  // Sums of pairs of unsigned codes stay within int16 over so many quads: each adds two products.
  // Signed codes come one at a time: a pair is at most 2 x 128 x 127 = 32,512.
  template <typename C>
  static constexpr size_t run() {
    if (C::kSigned) return 1;
    for (size_t quads = C::kScales == 2 ? 4 : 8; quads > 1; quads /= 2) {
      if (quads * 2 * C::kLargest * 127 <= 32767) return quads;
    }
    return 1;
  }

  template <typename C>
  struct Sums {
    __m256i pairs, whole;
  };

  template <typename C, size_t kQuad>
  [[gnu::always_inline]] static void add(Bytes codes, Input q, Side,
                                         const PartScales<Avx2Bytes>& scales, Sums<C>& sums) {
    constexpr size_t kRun = run<C>();
    const __m256i four = broadcast_four(q + 4 * kQuad);
    __m256i pairs;
    if constexpr (C::kSigned)  // one side must be unsigned, so the sign moves to the other
      pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes));
    else
      pairs = _mm256_maddubs_epi16(codes, four);
    if constexpr (kQuad % kRun > 0) pairs = _mm256_add_epi16(sums.pairs, pairs);
    sums.pairs = V::in_turn(pairs);
    if constexpr (kQuad % kRun != kRun - 1) return;
    const __m256i factors = C::kScales == 0   ? _mm256_set1_epi16(1)
                            : C::kScales == 1 ? scales[0]
                                              : scales[kQuad / (kQuads / 2)];
    const __m256i whole = _mm256_madd_epi16(sums.pairs, factors);
    sums.whole = kQuad < kRun ? whole : V::in_turn(_mm256_add_epi32(sums.whole, whole));
  }
  template <typename C>
  static void value(const Sums<C>& sums, Side side, const PartScales<Avx2Bytes>& scales,
                    __m256 (&out)[1]) {
    __m256i whole = sums.whole;
    if constexpr (C::kOffset != 0) {
      // Both halves' sums, as int16, times their scales.
      int32_t both;
      std::memcpy(&both, &side, sizeof both);
      const __m256i factors = C::kScales == 0   ? _mm256_set1_epi16(C::kOffset)
                              : C::kScales == 1 ? scales[0]
                                                : _mm256_blend_epi16(scales[0], scales[1], 0xaa);
      __m256i offset = _mm256_madd_epi16(_mm256_set1_epi32(both), factors);
      if constexpr (C::kScales > 0) {
        constexpr int kShift = std::countr_zero(static_cast<unsigned>(C::kOffset));
        offset = _mm256_slli_epi32(offset, kShift);
      }
      whole = _mm256_sub_epi32(whole, offset);
    }
    out[0] = _mm256_cvtepi32_ps(whole);
  }

 private:
  // Four activations in each row.
  static __m256i broadcast_four(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, 4);
    return _mm256_set1_epi32(four);
  }
};

}  // namespace
}  // namespace hearth
