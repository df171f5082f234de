// y[t][r] = sum over c of w[r][c] * x[t][c] + bias[r]; of up to three matrices of the same columns,
// whose groups of rows come one after the other.
#version 450
#include "common.glsl"
#include "products.glsl"

layout(push_constant) uniform Arguments {
  Words x;  // see Input
  Floats scales;
  Words weights_of[3];
  Floats y_of[3];     // [tokens, y_stride]
  Floats bias_of[3];  // null: none
  uint columns;
  uint tokens;
  uint group_words;
  uint rows_of[3];  // of each matrix; 0 for those that are not there
  uint y_stride_of[3];
};

void main() {
  uint matrix = 0, number = gl_WorkGroupID.x;
  for (; matrix < 2; ++matrix) {
    const uint groups = (rows_of[matrix] + kGroupRows - 1) / kGroupRows;
    if (number < groups) break;
    number -= groups;
  }
  const uint first = gl_WorkGroupID.y * kTokens, count = min(tokens - first, kTokens);
  for (uint t = 0; t < kTokens; ++t) x_row[t] = first + t;
  add_products(weights_of[matrix], number * group_words, Input(x, scales, columns), count);
  const uint row = number * kGroupRows + weight_row();
  const bool writes = gl_LocalInvocationID.x < kGroupRows && row < rows_of[matrix];
  for (uint t = 0; t < kTokens; ++t) {
    const float product = whole_sum(t);
    if (!writes || t >= count) continue;
    Floats bias = bias_of[matrix], y = y_of[matrix];
    const float added = any(notEqual(uvec2(bias), uvec2(0))) ? bias.at[row] : 0.0;
    y.at[(first + t) * y_stride_of[matrix] + row] = product + added;
  }
}
