// FEAT_DotProd (Raspberry Pi 5 and most Arm cores since 2018). One instruction multiplies four int8
// of each of four rows with four activations and adds them up. A vector of a packed group holds
// just that. Everything else of this instruction set is NEON's (kernels.cpp).
#include "blocks.h"
#include "neon.h"

namespace hearth {
namespace {

// Shared by both types: sums that start at the offset.
struct DotprodSums {
  static constexpr size_t kPanelTokens = 0;
  // Four tokens are what 32 registers hold: a sum, a block's sum and the activations, two vectors
  // each.
  using Tiles = std::index_sequence<4, 3, 2, 1>;
  using Input = BlockInput;
  struct Sums {
    int32x4_t whole[kHalves];
  };

  static Input input(const int8_t* q) { return load_input(q); }
  static void start(int32x4_t offset, Sums& sums) {
    sums.whole[0] = sums.whole[1] = vnegq_s32(offset);
  }
  static void total(const Sums& sums, int32x4_t, int32x4_t (&whole)[kHalves]) {
    unrolled<kHalves>([&](auto h) { whole[h] = sums.whole[h]; });
  }
  template <size_t kQuad>
  [[gnu::always_inline]] static void add_four(const int8x16_t (&w)[kHalves], const Input& input,
                                              Sums& sums) {
    unrolled<kHalves>([&](auto h) {
      sums.whole[h] = vdotq_laneq_s32(sums.whole[h], w[h], input.q[kQuad / 4], kQuad % 4);
    });
  }
};

struct DotprodNibbles : DotprodSums {
  static constexpr size_t kBlockBytes = kQ40GroupBlock, kSteps = 4, kStepBytes = 32;
  static constexpr int32_t kOffset = 8;
  using Weights = NibbleWeights;

  static void load(const uint8_t* at, Weights& w) { load_nibbles(at, w); }
  template <size_t kStep>
  [[gnu::always_inline]] static void add(const Weights& w, const Input& input, Sums& sums) {
    add_four<kStep>(w.low, input, sums);
    add_four<kStep + 4>(w.high, input, sums);
  }
};

struct DotprodBytes : DotprodSums {
  static constexpr size_t kBlockBytes = kQ80GroupBlock, kSteps = 8, kStepBytes = 32;
  static constexpr int32_t kOffset = 0;
  struct Weights {
    int8x16_t bytes[kHalves];
  };

  static void load(const uint8_t* at, Weights& w) {
    unrolled<kHalves>([&](auto h) { w.bytes[h] = load_bytes(at + 16 * h); });
  }
  template <size_t kStep>
  [[gnu::always_inline]] static void add(const Weights& w, const Input& input, Sums& sums) {
    add_four<kStep>(w.bytes, input, sums);
  }
};

}  // namespace

namespace dotprod {

void matmul_q80(const MatmulArgs& a, const QuantizedRows& x) {
  matmul_blocks<Neon, DotprodBytes>(a, x);
}
void matmul_q40(const MatmulArgs& a, const QuantizedRows& x) {
  matmul_blocks<Neon, DotprodNibbles>(a, x);
}

}  // namespace dotprod
}  // namespace hearth
