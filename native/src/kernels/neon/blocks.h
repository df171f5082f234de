// A block's integer sums with NEON (see generic/block_products.h). Two vectors hold four int8 of
// each of the eight rows of a group, four rows each.
#pragma once

#include "../generic/block_products.h"
#include "vec.h"

namespace hearth {
namespace {

inline constexpr size_t kHalves = 2;  // vectors of four rows in a group of eight

inline int8x16_t load_bytes(const uint8_t* at) { return vreinterpretq_s8_u8(vld1q_u8(at)); }

// Nibbles, unsigned.
inline int8x16_t low_nibbles(uint8x16_t bytes) {
  return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
}
inline int8x16_t high_nibbles(uint8x16_t bytes) {
  return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
}

// The codes of 32 packed bytes of nibbles: columns 4 i .. 4 i + 3 of the rows, and those 16
// further.
struct NibbleWeights {
  int8x16_t low[kHalves], high[kHalves];
};

inline void load_nibbles(const uint8_t* at, NibbleWeights& w) {
  unrolled<kHalves>([&](auto h) {
    const uint8x16_t bytes = vld1q_u8(at + 16 * h);
    w.low[h] = low_nibbles(bytes);
    w.high[h] = high_nibbles(bytes);
  });
}

// The activations of a token in a block.
struct BlockInput {
  int8x16_t q[2];
};

inline BlockInput load_input(const int8_t* q) { return {{vld1q_s8(q), vld1q_s8(q + 16)}}; }

// Four activations, once for each of four rows.
template <size_t kQuad>
int8x16_t quad(const BlockInput& input) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(input.q[kQuad / 4]), kQuad % 4));
}

// Four bits: a product is at most 15 x 127 in magnitude, and eight of them are added in each lane
// of a block: 15,240, and 30,480 after the sum of pairs. All within int16.
struct NeonNibbles {
  static constexpr size_t kBlockBytes = kQ40GroupBlock, kSteps = 4, kStepBytes = 32;
  static constexpr int32_t kOffset = 8;
  static constexpr size_t kPanelTokens = 0;
  using Tiles = std::index_sequence<2, 1>;  // registers do not hold more
  using Weights = NibbleWeights;
  using Input = BlockInput;
  struct Sums {
    int16x8_t lanes[kHalves][2];  // two rows in each vector, four lanes a row
  };

  static Input input(const int8_t* q) { return load_input(q); }
  static void start(int32x4_t, Sums& sums) {
    unrolled<kHalves>([&](auto h) { sums.lanes[h][0] = sums.lanes[h][1] = vdupq_n_s16(0); });
  }
  static void load(const uint8_t* at, Weights& w) { load_nibbles(at, w); }
  template <size_t kStep>
  [[gnu::always_inline]] static void add(const Weights& w, const Input& input, Sums& sums) {
    add_four(w.low, quad<kStep>(input), sums);
    add_four(w.high, quad<kStep + 4>(input), sums);
  }
  [[gnu::always_inline]] static void total(const Sums& sums, int32x4_t offset,
                                           int32x4_t (&whole)[kHalves]) {
    unrolled<kHalves>([&](auto h) {
      const int16x8_t pairs = vpaddq_s16(sums.lanes[h][0], sums.lanes[h][1]);
      whole[h] = vsubq_s32(vpaddlq_s16(pairs), offset);
    });
  }

 private:
  [[gnu::always_inline]] static void add_four(const int8x16_t (&w)[kHalves], int8x16_t four,
                                              Sums& sums) {
    unrolled<kHalves>([&](auto h) {
      int16x8_t(&lanes)[2] = sums.lanes[h];
      lanes[0] = vmlal_s8(lanes[0], vget_low_s8(w[h]), vget_low_s8(four));
      lanes[1] = vmlal_high_s8(lanes[1], w[h], four);
    });
  }
};

// Eight bits: two products, at most 2 x 128 x 127 = 32,512, are added as int16; then widened. So a
// step takes eight columns.
struct NeonBytes {
  static constexpr size_t kBlockBytes = kQ80GroupBlock, kSteps = 4, kStepBytes = 64;
  static constexpr int32_t kOffset = 0;
  static constexpr size_t kPanelTokens = 0;
  using Tiles = std::index_sequence<2, 1>;
  struct Weights {
    int8x16_t first[kHalves], second[kHalves];  // four columns, and the next four
  };
  using Input = BlockInput;
  struct Sums {
    int32x4_t lanes[kHalves][2];  // two rows in each vector, two lanes a row
  };

  static Input input(const int8_t* q) { return load_input(q); }
  static void start(int32x4_t, Sums& sums) {
    unrolled<kHalves>([&](auto h) { sums.lanes[h][0] = sums.lanes[h][1] = vdupq_n_s32(0); });
  }
  static void load(const uint8_t* at, Weights& w) {
    unrolled<kHalves>([&](auto h) {
      w.first[h] = load_bytes(at + 16 * h);
      w.second[h] = load_bytes(at + 32 + 16 * h);
    });
  }
  template <size_t kStep>
  [[gnu::always_inline]] static void add(const Weights& w, const Input& input, Sums& sums) {
    const int8x16_t first = quad<2 * kStep>(input), second = quad<2 * kStep + 1>(input);
    unrolled<kHalves>([&](auto h) {
      int16x8_t products = vmull_s8(vget_low_s8(w.first[h]), vget_low_s8(first));
      products = vmlal_s8(products, vget_low_s8(w.second[h]), vget_low_s8(second));
      sums.lanes[h][0] = vpadalq_s16(sums.lanes[h][0], products);
      products = vmlal_high_s8(vmull_high_s8(w.first[h], first), w.second[h], second);
      sums.lanes[h][1] = vpadalq_s16(sums.lanes[h][1], products);
    });
  }
  static void total(const Sums& sums, int32x4_t, int32x4_t (&whole)[kHalves]) {
    unrolled<kHalves>([&](auto h) { whole[h] = vpaddq_s32(sums.lanes[h][0], sums.lanes[h][1]); });
  }
};

}  // namespace
}  // namespace hearth
