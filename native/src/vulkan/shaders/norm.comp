// y = factor * norm(x + partial) of one row, or y += that; quantized too where asked. Without weights
// it copies.
#version 450
#include "common.glsl"
#include "quantize.glsl"
const uint kThreads = 256;
layout(local_size_x = 256) in;
#include "sums.glsl"

const uint kAdd = 1, kRms = 2, kLayer = 4, kQuantize = 8, kChosenRows = 16, kAddToResult = 32;

layout(push_constant) uniform Arguments {
  Floats x;        // [rows, columns], x_stride apart; gets x + partial
  Floats partial;  // [rows, columns]
  Floats y;        // may be x
  Floats weight;
  Floats bias;
  Words q;
  Floats scales;
  Words chosen;  // row of x that row r of y comes from
  uint columns;
  uint x_stride;
  float epsilon;
  float factor;
  uint flags;
};

void main() {
  const uint row = gl_WorkGroupID.x;
  const uint from = ((flags & kChosenRows) != 0 ? chosen.at[row] : row) * x_stride;
  const uint thread = gl_LocalInvocationID.x;
  float sum = 0.0, squares = 0.0;
  for (uint c = thread * 4; c < columns; c += 1024) {
    for (uint i = c; i < min(c + 4, columns); ++i) {
      float value = x.at[from + i];
      if ((flags & kAdd) != 0) {
        value += partial.at[from + i];
        x.at[from + i] = value;
      }
      sum += value;
      squares = fma(value, value, squares);
    }
  }
  float mean = 0.0, scale = factor;
  if ((flags & kLayer) != 0) {
    mean = sum_of_all(sum) / float(columns);
    squares = 0.0;
    for (uint c = thread * 4; c < columns; c += 1024) {
      for (uint i = c; i < min(c + 4, columns); ++i) {
        const float apart = x.at[from + i] - mean;
        squares = fma(apart, apart, squares);
      }
    }
  }
  if ((flags & (kRms | kLayer)) != 0)
    scale = 1.0 / sqrt(sum_of_all(squares) / float(columns) + epsilon);
  for (uint first = 0; first < columns; first += 1024) {
    const uint c = first + thread * 4;
    vec4 made = vec4(0.0);
    for (uint i = 0; i < 4 && c + i < columns; ++i) {
      float value = (x.at[from + c + i] - mean) * scale;
      if ((flags & (kRms | kLayer)) != 0) value *= weight.at[c + i];
      if ((flags & kLayer) != 0) value += bias.at[c + i];
      if ((flags & (kRms | kLayer)) != 0) value *= factor;
      if ((flags & kAddToResult) != 0) value += y.at[row * columns + c + i];
      made[i] = value;
      y.at[row * columns + c + i] = value;
    }
    if ((flags & kQuantize) != 0) quantize4(made, c < columns, row, columns, c, q, scales);
  }
}
