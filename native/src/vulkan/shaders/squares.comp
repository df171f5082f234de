// SumSquares: the sum of squares of a row's queries, or of the keys that this rank counts.
#version 450
#include "common.glsl"
const uint kThreads = 256;
layout(local_size_x = 256) in;
#include "sums.glsl"

layout(push_constant) uniform Arguments {
  Floats queries;  // [rows, query_columns]
  Floats keys;     // [rows, key_columns]
  Floats squares;  // [rows, 2]
  uint query_columns;
  uint key_columns;
  uint first_counted;  // of the key columns
  uint counted;
};

void main() {
  const uint row = gl_WorkGroupID.y, thread = gl_LocalInvocationID.x;
  const bool query = gl_WorkGroupID.x == 0;
  const uint from = query ? row * query_columns : row * key_columns + first_counted;
  float sum = 0.0;
  for (uint i = thread; i < (query ? query_columns : counted); i += kThreads) {
    const float x = query ? queries.at[from + i] : keys.at[from + i];
    sum = fma(x, x, sum);
  }
  sum = sum_of_all(sum);
  if (thread == 0) squares.at[row * 2 + gl_WorkGroupID.x] = sum;
}
