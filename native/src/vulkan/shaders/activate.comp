// gate = activation(gate) * up, quantized too where asked (Kernels::activate, layers' activate).
#version 450
#include "common.glsl"
#include "quantize.glsl"
layout(local_size_x = 256) in;

const uint kGated = 1, kClamp = 2, kQuantize = 4;

layout(push_constant) uniform Arguments {
  Floats gate;  // [rows, units]
  Floats up;
  Words q;
  Floats scales;
  uint units;
  uint activation;
  uint flags;
  float limit;
  float clamp_factor;
  float offset;
};

// erf by a series of positive terms, and so without cancellation; 1 - erf(4) is below half a unit
// in the last place. (Abramowitz, Stegun: Handbook of mathematical functions, 7.1.6)
float erf(float x) {
  const float size = abs(x);
  if (size >= 4.0) return sign(x);
  float term = size, sum = size;
  for (uint n = 1; n < 64; ++n) {
    term *= 2.0 * size * size / float(2 * n + 1);
    sum += term;
  }
  return sign(x) * min(1.0, 1.1283791671 * exp(-size * size) * sum);
}

float activated(float x) {
  switch (activation) {
    case 0: return x / (1.0 + exp(-x));
    case 1: return x / (1.0 + exp(-1.5957691216 * (x + 0.044715 * x * x * x)));
    case 2: return x * (1.0 + erf(x * 0.70710678118)) * 0.5;
    default: return max(x, 0.0) * max(x, 0.0);
  }
}

void main() {
  const uint row = gl_WorkGroupID.y, c = (gl_WorkGroupID.x * 256 + gl_LocalInvocationID.x) * 4;
  vec4 made = vec4(0.0);
  for (uint i = 0; i < 4 && c + i < units; ++i) {
    const uint at = row * units + c + i;
    float x = gate.at[at], factor = (flags & kGated) != 0 ? up.at[at] : 1.0;
    if ((flags & kClamp) != 0) {
      x = min(x, limit) * clamp_factor;
      factor = (clamp(factor, -limit, limit) + offset) / clamp_factor;
    }
    made[i] = activated(x) * factor;
    gate.at[at] = made[i];
  }
  if ((flags & kQuantize) != 0) quantize4(made, c < units, row, units, c, q, scales);
}
