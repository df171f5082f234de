// Inputs of the gated delta rule, of one row and one head (query heads, key heads, value heads):
// the convolution over positions, its activation, and the norms of queries and keys.
#version 450
#include "activations.glsl"
#include "common.glsl"
#include "delta.glsl"
const uint kThreads = 64;
layout(local_size_x = 64) in;
#include "sums.glsl"

const float kKeyEpsilon = 1e-6;

layout(push_constant) uniform Arguments {
  Floats queries;  // [rows, key heads * key_size]: products
  Floats keys;
  Floats values;        // [rows, value heads * value_size]
  Floats query_filter;  // of each column, oldest first: [columns, width]
  Floats key_filter;
  Floats value_filter;
  Floats made;      // [rows, inputs]
  Words sequences;  // [sequences, 2]: first row, rows
  Words of_rows;    // [rows]: the sequence of each
  Addresses states;
  uint layer_bytes;
  uint activation;
};

const uint kMostSize = kKeySize > kValueSize ? kKeySize : kValueSize;
shared float head[kMostSize];

float product_at(uint kind, uint at) {
  return kind == 0 ? queries.at[at] : kind == 1 ? keys.at[at] : values.at[at];
}

float filter_at(uint kind, uint at) {
  return kind == 0 ? query_filter.at[at] : kind == 1 ? key_filter.at[at] : value_filter.at[at];
}

void main() {
  const uint item = gl_WorkGroupID.x, row = gl_WorkGroupID.y, thread = gl_LocalInvocationID.x;
  const uint kind = min(item / kKeyHeads, 2), own = item - kind * kKeyHeads;
  const uint size = kind == 2 ? kValueSize : kKeySize, width = kind == 2 ? kValues : kKeys;
  const uvec2 of_value = key_head_of(own);
  const uint key_head = kind == 2 ? of_value.x : own;
  // The first of the head's channels, among those of its key head.
  const uint channel = kind == 2 ? 2 * kKeySize + of_value.y * kValueSize : kind * kKeySize;
  const uint sequence = of_rows.at[row], first_row = sequences.at[sequence * 2];
  Floats state = state_at(states.at[sequence], layer_bytes);
  const uint earlier = key_head * kHeadFloats + channel;
  float squares = 0.0;
  for (uint c = thread; c < size; c += kThreads) {
    float sum = 0.0;
    for (uint t = 0; t < kWidth; ++t) {
      const uint back = kWidth - 1 - t;  // rows
      const float x = row - first_row >= back
                          ? product_at(kind, (row - back) * width + own * size + c)
                          : state.at[earlier + (row - first_row + t) * kChannels + c];
      sum = fma(filter_at(kind, (own * size + c) * kWidth + t), x, sum);
    }
    head[c] = activated(activation, sum);
    squares = fma(head[c], head[c], squares);
  }
  float factor = 1.0;
  if (kind < 2) {
    factor = 1.0 / sqrt(sum_of_all(squares) + kKeyEpsilon);
    if (kind == 0) factor /= sqrt(float(kKeySize));
  }
  const uint to = row * kInputs + kind * kKeys + own * size;
  for (uint c = thread; c < size; c += kThreads) made.at[to + c] = head[c] * factor;
}
