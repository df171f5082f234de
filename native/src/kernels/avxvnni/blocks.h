// AVX-VNNI: the VNNI instructions in vectors of 256 bits, on CPUs without AVX-512 (Intel since
// 2021). Bytes are as AVX2 has them.
#pragma once

#include "../avx2/blocks.h"
#include "../vnni/sums.h"

namespace hearth {
namespace {

struct AvxVnni : Avx2 {
  static Int dot(Int sums, Int codes, Int activations) {
    return _mm256_dpbusd_avx_epi32(sums, codes, activations);
  }
};

struct AvxVnniBytes : Avx2Codes, VnniSums<AvxVnni> {
  using V = AvxVnni;

  static Bytes from_int8(Bytes bytes) {
    return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  template <size_t kByte>
  static Scale scale(Bytes words) {
    return V::from_int(Avx2Codes::word_bits<8 * static_cast<int>(kByte), 255>(words));
  }
  template <size_t kByte>
  static Scale signed_scale(Bytes words) {
    if constexpr (kByte < 3) words = _mm256_slli_epi32(words, 24 - 8 * kByte);
    return V::from_int(_mm256_srai_epi32(words, 24));
  }
  static Scale word_scale(Bytes words, int32_t less) {
    return V::from_int(V::sub(words, V::broadcast_int(less)));
  }
  static Scale load_scale(const int32_t* at) {
    return _mm256_castsi256_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static void store_scale(Scale scale, int32_t* at) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm256_castps_si256(scale));
  }
};

}  // namespace
}  // namespace hearth
