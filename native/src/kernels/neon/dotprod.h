// Sums of FEAT_DotProd (Raspberry Pi 5 and most Arm cores since 2018). One instruction multiplies
// four int8 of each of four rows with four activations and adds them up. A vector of a packed group
// holds just that.
#pragma once

#include "blocks.h"

namespace hearth {
namespace {

struct DotprodBytes : NeonCodes {
  // Four tokens are what 32 registers hold: codes, a sum and a part's sums.
  using Tiles = std::index_sequence<4, 3, 2, 1>;

  template <typename C>
  struct Sums {
    int32x4_t part[kHalves], whole[kHalves];
  };

  template <typename C, size_t kQuad>
  [[gnu::always_inline]] static void add(const Bytes& codes, const Input& input, Side,
                                         const Scale (&scales)[2], Sums<C>& sums) {
    constexpr size_t kScaled = C::kScales == 2 ? kQuads / 2 : kQuads;
    unrolled<kHalves>([&](auto h) {
      const int32x4_t before = kQuad % kScaled == 0 ? vdupq_n_s32(0) : sums.part[h];
      sums.part[h] = vdotq_laneq_s32(before, vreinterpretq_s8_u8(codes.half[h]), input.q[kQuad / 4],
                                     kQuad % 4);
      if constexpr (kQuad % kScaled != kScaled - 1) return;
      if constexpr (C::kScales == 0)
        sums.whole[h] = sums.part[h];
      else if constexpr (kQuad < kScaled)
        sums.whole[h] = vmulq_s32(sums.part[h], scales[0].half[h]);
      else
        sums.whole[h] = vmlaq_s32(sums.whole[h], sums.part[h], scales[1].half[h]);
    });
  }
  template <typename C>
  static void value(const Sums<C>& sums, Side side, const Scale (&scales)[2],
                    float32x4_t (&out)[kHalves]) {
    without_offset<C>(sums.whole, side, scales, out);
  }
};

}  // namespace
}  // namespace hearth
