// Integer sums of the VNNI instructions (see generic/block_products.h). One multiplies four
// unsigned codes of each row by four int8 activations, and adds the products to an int32. `V`: a
// vector trait that also has dot(sums, codes, activations).
//
// A sum starts at what the codes' offset adds, with the sign changed, so that it ends as the sum of
// the true products. That is exact in f32, and so is its product with an integer scale (below 2^24
// for every type), so integer scales are applied as f32.
#pragma once

#include "../generic/block_products.h"

namespace hearth {
namespace {

template <typename V>
struct VnniSums {
  using Float = typename V::Float;
  // Signed codes plus 128 are unsigned.
  static constexpr int32_t kSignedOffset = 128;

  using Scale = Float;
  static void to_float(Scale scale, Float (&out)[1]) { out[0] = scale; }

  using Input = const int8_t*;
  static Input input(const int8_t* q) { return q; }

  // The starts of a part's sums: of both halves, or of each.
  struct Side {
    int32_t starts[2];
  };
  template <typename C>
  static Side side(HalfSums sums) {
    constexpr int32_t kOffset = C::kOffset + (C::kSigned ? kSignedOffset : 0);
    if constexpr (kOffset == 0) return {};
    if constexpr (C::kScales == 2) return {{-kOffset * sums.first, -kOffset * sums.second}};
    return {{-kOffset * (sums.first + sums.second), 0}};
  }

  template <typename C>
  struct Sums {
    typename V::Int parts[2];
  };

  template <typename C, size_t kQuad>
  [[gnu::always_inline]] static void add(typename V::Int codes, Input q, const Side& side,
                                         const Scale (&)[2], Sums<C>& sums) {
    constexpr size_t kRun = C::kScales == 2 ? kQuads / 2 : kQuads, kPart = kQuad / kRun;
    constexpr bool kOffset = C::kOffset > 0 || C::kSigned;
    typename V::Int& sum = sums.parts[kPart];
    if constexpr (kQuad % kRun == 0)
      sum = kOffset ? V::broadcast_int(side.starts[kPart]) : V::zero_int();
    int32_t four;
    std::memcpy(&four, q + 4 * kQuad, sizeof four);
    sum = V::in_turn(V::dot(sum, codes, V::broadcast_int(four)));
  }
  template <typename C>
  [[gnu::always_inline]] static void value(const Sums<C>& sums, const Side&,
                                           const Scale (&scales)[2], Float (&out)[1]) {
    out[0] = V::from_int(sums.parts[0]);
    if constexpr (C::kScales > 0) out[0] = V::mul(out[0], scales[0]);
    if constexpr (C::kScales == 2) out[0] = V::fma(V::from_int(sums.parts[1]), scales[1], out[0]);
  }
};

}  // namespace
}  // namespace hearth
