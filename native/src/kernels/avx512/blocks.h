// Bytes with AVX-512 (see generic/codecs.h and block_products.h). A vector holds four int8 of each
// of the sixteen rows of two groups.
#pragma once

#include "../vnni/sums.h"
#include "vec.h"

namespace hearth {
namespace {

struct Avx512Bytes : VnniSums<Avx512> {
  using V = Avx512;
  using Bytes = __m512i;
  static constexpr size_t kGroups = 2;
  // As fast as a panel up to 32 tokens on Zen 4, and 1.2 to 1.5 times as fast for 9 to 16.
  static constexpr size_t kPanelTokens = 17;
  static constexpr size_t kTileTokens = 4, kTileStripes = 2, kRunParts = 16;
  using Tiles = std::index_sequence<8, 6, 4, 3, 2, 1>;

  // The same place in two groups.
  struct At {
    const uint8_t* first;
    size_t apart;
    At operator+(size_t bytes) const { return {first + bytes, apart}; }
    const uint8_t* second() const { return first + apart; }
  };
  // Where the second group does not exist, the first stands in for it: what comes out for its rows
  // is not stored.
  static At at(const uint8_t* group, size_t group_bytes, size_t groups) {
    return {group, groups > 1 ? group_bytes : 0};
  }

  static Bytes load(At at) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(at.first)), half(at.second()), 1);
  }
  static Bytes load_panel(const uint8_t* at) { return _mm512_load_si512(at); }
  static void store(uint8_t* at, Bytes bytes) { _mm512_store_si512(at, bytes); }
  static void load_halves(At at, __m512 (&out)[1]) { out[0] = _mm512_cvtph_ps(load_short(at)); }
  static Bytes pairs(At at) { return _mm512_cvtepu16_epi32(load_short(at)); }
  static void exponents(At at, __m512 (&powers)[1]) {
    const __m128i bytes =
        _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at.first)),
                           _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at.second())));
    const Bytes e = _mm512_cvtepu8_epi32(bytes);
    // Where an exponent is special, the first bit of the mantissa makes 2^-127, or NaN.
    const __mmask16 special = _mm512_cmpeq_epi32_mask(e, _mm512_setzero_si512()) |
                              _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
    const Bytes mantissa = _mm512_maskz_set1_epi32(special, 0x00400000);
    powers[0] = _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(e, 23), mantissa));
  }

  // Shifts of 16 bits carry bits into a neighbour, where the mask drops them.
  template <int kShift, int kMask>
  static Bytes bits(Bytes bytes) {
    if constexpr (kShift > 0) bytes = _mm512_srli_epi16(bytes, kShift);
    return _mm512_and_si512(bytes, all(kMask));
  }
  template <int kShift, int kMask>
  static Bytes raised(Bytes bytes) {
    if constexpr (kShift > 0) bytes = _mm512_slli_epi16(bytes, kShift);
    return _mm512_and_si512(bytes, all(kMask));
  }
  template <int kShift, int kMask>
  static Bytes word_bits(Bytes words) {
    if constexpr (kShift > 0) words = _mm512_srli_epi32(words, kShift);
    if constexpr (kShift < 0) words = _mm512_slli_epi32(words, -kShift);
    return _mm512_and_si512(words, _mm512_set1_epi32(kMask));
  }
  static Bytes both(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  static Bytes less(Bytes bytes, int number) { return _mm512_sub_epi8(bytes, all(number)); }
  static Bytes lookup(const int8_t (&table)[16], Bytes nibbles) {
    const __m128i lane = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(lane), nibbles);
  }
  static Bytes from_int8(Bytes bytes) { return _mm512_xor_si512(bytes, all(0x80)); }
  template <size_t kQuad>
  static Bytes fifths(Bytes words) {
    // The byte that holds the bits of this quad, in all bytes of its word.
    const __m128i lane = _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    const Bytes order = _mm512_add_epi8(_mm512_broadcast_i32x4(lane), all(kQuad / 2));
    const Bytes bit = _mm512_set1_epi32(0x08040201 << (kQuad % 2 * 4));
    const __mmask64 is_set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(words, order), bit);
    return _mm512_maskz_set1_epi8(is_set, 16);
  }

  template <size_t kByte>
  static Scale scale(Bytes words) {
    return V::from_int(word_bits<8 * static_cast<int>(kByte), 255>(words));
  }
  template <size_t kByte>
  static Scale signed_scale(Bytes words) {
    if constexpr (kByte < 3) words = _mm512_slli_epi32(words, 24 - 8 * kByte);
    return V::from_int(_mm512_srai_epi32(words, 24));
  }
  static Scale word_scale(Bytes words, int32_t less) {
    return V::from_int(V::sub(words, V::broadcast_int(less)));
  }
  static Scale load_scale(const int32_t* at) { return _mm512_load_ps(at); }
  static void store_scale(Scale scale, int32_t* at) { _mm512_store_ps(at, scale); }

 private:
  static __m256i half(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  // Sixteen bytes of each group.
  static __m256i load_short(At at) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at.first))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(at.second())), 1);
  }
  static Bytes all(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
};

}  // namespace
}  // namespace hearth
