// Keeps a sequence's products at its last width - 1 positions, of one channel each thread.
#version 450
#include "common.glsl"
#include "delta.glsl"
layout(local_size_x = 64) in;

layout(push_constant) uniform Arguments {
  Floats queries;  // as in delta_inputs.comp
  Floats keys;
  Floats values;
  Words sequences;
  Addresses states;
  uint layer_bytes;
};

void main() {
  const uint all = gl_WorkGroupID.x * 64 + gl_LocalInvocationID.x;
  if (all >= kKeyHeads * kChannels) return;
  const uint key_head = all / kChannels, channel = all % kChannels;
  Floats state = state_at(states.at[gl_WorkGroupID.y], layer_bytes);
  const uint earlier = key_head * kHeadFloats + channel;
  const uint first_row = sequences.at[gl_WorkGroupID.y * 2];
  const uint rows = sequences.at[gl_WorkGroupID.y * 2 + 1];
  // From the oldest on, because a row may come from further behind in the state.
  for (uint i = 0; i + 1 < kWidth; ++i) {
    float x;
    if (rows + i < kWidth - 1) {
      x = state.at[earlier + (rows + i) * kChannels];
    } else {
      const uint row = first_row + rows + i - (kWidth - 1);
      if (channel < kKeySize) {
        x = queries.at[row * kKeys + key_head * kKeySize + channel];
      } else if (channel < 2 * kKeySize) {
        x = keys.at[row * kKeys + key_head * kKeySize + channel - kKeySize];
      } else {
        const uint c = channel - 2 * kKeySize;
        const uint head = value_head_of(key_head, c / kValueSize);
        x = values.at[row * kValues + head * kValueSize + c % kValueSize];
      }
    }
    state.at[earlier + i * kChannels] = x;
  }
}
