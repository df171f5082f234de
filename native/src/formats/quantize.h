// Quantizers of f32 to blocks: to the nearest codes, under scales that a short search finds. What
// is not finite counts as 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/types.h"

namespace hearth {

// x: the block's elements; out: its bytes. type: a quantized one.
void quantize_block(Type type, const float* x, uint8_t* out);

namespace quantizers {

// 1 / scale, or 0 where that would be infinite: such a block is all zeros.
float inverse_of(float scale);
// The nearest integer, within [low, high].
int nearest(float value, int low, int high);
void store_f16(uint8_t* out, float value);
// The value that store_f16 stores.
float stored(float value);

// A scale and codes in [-most - 1, most]: x is about scale * code.
float fit_scale(const float* x, size_t count, int most);
// A scale and what is added: x is about scale * code + minimum, codes in [0, most], minimum <= 0.
struct ScaleAndMinimum {
  float scale, minimum;
};
ScaleAndMinimum fit_minimum(const float* x, size_t count, int most);
// A scale for sixteen values in ascending order, and the nearest of them.
float fit_values(const float* x, size_t count, const int8_t (&values)[16]);
uint8_t nearest_value(float value, const int8_t (&values)[16]);

// The quantizers of blocks of 256 (quantize_k.cpp).
void q2_k(const float* x, uint8_t* out);
void q3_k(const float* x, uint8_t* out);
void q4_k(const float* x, uint8_t* out);
void q5_k(const float* x, uint8_t* out);
void q6_k(const float* x, uint8_t* out);
void iq4_xs(const float* x, uint8_t* out);

}  // namespace quantizers
}  // namespace hearth
