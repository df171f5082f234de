// JoinLayerInputs, once what is projected is normed: inputs = (projected + inputs * scale) * factor.
#version 450
#include "common.glsl"
layout(local_size_x = 256) in;

layout(push_constant) uniform Arguments {
  Floats projected;  // [rows, width]
  Floats inputs;     // [rows, width]
  uint width;
  float embedding_scale;
  float sum_scale;
};

void main() {
  const uint c = gl_WorkGroupID.x * 256 + gl_LocalInvocationID.x;
  if (c >= width) return;
  const uint at = gl_WorkGroupID.y * width + c;
  inputs.at[at] = (projected.at[at] + inputs.at[at] * embedding_scale) * sum_scale;
}
