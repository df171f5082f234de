// mixed = rms_norm(mixed) * silu(gate), of one row and one value head.
#version 450
#include "common.glsl"
const uint kThreads = 64;
layout(local_size_x = 64) in;
#include "sums.glsl"

layout(push_constant) uniform Arguments {
  Floats mixed;  // [rows, heads * size]
  Floats gates;
  Floats weight;  // [size]
  uint size;
  float epsilon;
};

void main() {
  const uint from = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * size;
  const uint thread = gl_LocalInvocationID.x;
  float squares = 0.0;
  for (uint i = thread; i < size; i += kThreads)
    squares = fma(mixed.at[from + i], mixed.at[from + i], squares);
  const float factor = 1.0 / sqrt(sum_of_all(squares) / float(size) + epsilon);
  for (uint i = thread; i < size; i += kThreads) {
    const float gate = gates.at[from + i];
    mixed.at[from + i] = mixed.at[from + i] * factor * weight.at[i] * (gate / (1.0 + exp(-gate)));
  }
}
