// Types and numbers of all shaders. Memory is reached by address (buffer references), so that a dispatch needs
// no descriptors: its arguments are push constants.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float at[]; };
// Of KV pages: their addresses.
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Addresses { uvec2 at[]; };

const uint kBlock = 32;     // columns that share an activation's scale
const uint kGroupRows = 8;  // of a packed matrix

const uint kInfinity = 0x7f800000u;
const float kSmallestQuantized = 1e-36;  // see Kernels::quantize

// tanh that does not overflow where a driver makes it of exp.
float safe_tanh(float x) { return isnan(x) ? x : tanh(clamp(x, -20.0, 20.0)); }
