// Combine: the experts' outputs of one row by their weights, after the feed-forward's result.
#version 450
#include "common.glsl"
layout(local_size_x = 256) in;

const uint kFeedForward = 1, kGate = 2, kBias = 4;

layout(push_constant) uniform Arguments {
  Floats outputs;  // [pairs, hidden]
  Floats choices;  // [rows, 2 * used]
  Words places;    // [rows, used]
  Floats bias;     // [experts, hidden]
  Floats gates;    // [rows]
  Floats results;  // [rows, hidden], stride apart
  uint hidden;
  uint stride;
  uint used;
  uint flags;
};

void main() {
  const uint row = gl_WorkGroupID.y, c = gl_WorkGroupID.x * 256 + gl_LocalInvocationID.x;
  if (c >= hidden) return;
  float sum = (flags & kFeedForward) != 0 ? results.at[row * stride + c] : 0.0;
  if ((flags & kGate) != 0) sum *= 1.0 / (1.0 + exp(-gates.at[row]));
  for (uint k = 0; k < used; ++k) {
    const float weight = choices.at[row * 2 * used + used + k];
    sum += weight * outputs.at[places.at[row * used + k] * hidden + c];
    if ((flags & kBias) != 0)
      sum += weight * bias.at[uint(choices.at[row * 2 * used + k]) * hidden + c];
  }
  results.at[row * stride + c] = sum;
}
