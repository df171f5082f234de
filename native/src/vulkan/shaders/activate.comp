// gate = activation(gate) * up, quantized too where asked (Kernels::activate, layers' activate).
#version 450
#include "activations.glsl"
#include "common.glsl"
#include "quantize.glsl"
layout(local_size_x = 256) in;

const uint kGated = 1, kClamp = 2, kQuantize = 4;

layout(push_constant) uniform Arguments {
  Floats gate;  // [rows, units]
  Floats up;    // up_stride apart
  Words q;
  Floats scales;
  uint units;
  uint up_stride;
  uint activation;
  uint flags;
  float limit;
  float clamp_factor;
  float offset;
};

void main() {
  const uint row = gl_WorkGroupID.y, c = (gl_WorkGroupID.x * 256 + gl_LocalInvocationID.x) * 4;
  vec4 made = vec4(0.0);
  for (uint i = 0; i < 4 && c + i < units; ++i) {
    const uint at = row * units + c + i;
    float x = gate.at[at], factor = (flags & kGated) != 0 ? up.at[row * up_stride + c + i] : 1.0;
    if ((flags & kClamp) != 0) {
      x = min(x, limit) * clamp_factor;
      factor = (clamp(factor, -limit, limit) + offset) / clamp_factor;
    }
    made[i] = activated(activation, x) * factor;
    gate.at[at] = made[i];
  }
  if ((flags & kQuantize) != 0) quantize4(made, c < units, row, units, c, q, scales);
}
