// logits = softcap * tanh(scale * logits / softcap); without a softcap, scale * logits.
#version 450
#include "common.glsl"
layout(local_size_x = 256) in;

layout(push_constant) uniform Arguments {
  Floats logits;  // [rows, columns]
  uint columns;
  float scale;
  float softcap;
};

void main() {
  const uint c = gl_WorkGroupID.x * 256 + gl_LocalInvocationID.x;
  if (c >= columns) return;
  const uint at = gl_WorkGroupID.y * columns + c;
  const float x = logits.at[at] * scale;
  logits.at[at] = softcap > 0.0 ? softcap * safe_tanh(x / softcap) : x;
}
