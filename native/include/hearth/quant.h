// Quantization and dequantization between f32 and the weight types, a row at a time. Plain code: it
// runs when weights are read or converted, and for single rows of the embedding, never inside a
// matrix product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/types.h"

namespace hearth {

// IEEE 754 binary16, round to nearest even; what is too large becomes infinite.
uint16_t f32_to_f16(float value);
float f16_to_f32(uint16_t bits);
// bfloat16: the upper half of an f32, rounded to nearest even. NaN stays NaN.
uint16_t f32_to_bf16(float value);
float bf16_to_f32(uint16_t bits);

// x: [columns]; out: row_bytes(type, columns).
// q40: the scale is the signed element of largest magnitude over -8, so that it is exact; q80: the
// largest magnitude over 127.
void quantize_row(Type type, const float* x, size_t columns, uint8_t* out);
void dequantize_row(Type type, const uint8_t* in, size_t columns, float* out);

// Fills a cut of a random matrix. Every block of 32 columns comes from a counter-based generator
// keyed by (seed, row, block of the whole row). So a cut has the bytes of that part of the whole.
// Elements are near uniform with standard deviation `scale`. column_begin and columns are whole
// blocks of quantized types. out: [rows, row_bytes(type, columns)].
struct RandomCut {
  uint64_t seed;
  size_t row_begin, rows;
  size_t column_begin, columns;
  float scale;
};
void random_rows(Type type, const RandomCut& cut, uint8_t* out);

}  // namespace hearth
