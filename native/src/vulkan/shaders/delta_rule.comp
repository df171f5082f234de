// The gated delta rule of one sequence, over its rows in order, of 32 columns of one value head:
// columns of a state do not depend on each other. Eight threads share a column's state, in
// registers; so it is read and written once.
#version 450
#include "common.glsl"
#include "delta.glsl"
const uint kColumns = 32, kShares = 8, kThreads = kColumns * kShares;
layout(local_size_x = 256) in;

layout(push_constant) uniform Arguments {
  Floats inputs;  // [rows, inputs]: see delta_inputs.comp
  Floats decays;  // [rows, value heads]: products
  Floats betas;
  Floats decay_rates;  // [value heads]
  Floats decay_biases;
  Floats mixed;     // [rows, values]
  Words sequences;  // [sequences, 2]: first row, rows
  Addresses states;
  uint layer_bytes;
};

const uint kShare = (kKeySize + kShares - 1) / kShares;

shared float query[kKeySize];
shared float key[kKeySize];
shared float sums[kThreads];

float softplus(float x) { return x > 20.0 ? x : log(1.0 + exp(x)); }

// Of the threads of one column.
float sum_of_column(float mine) {
  const uint thread = gl_LocalInvocationID.x;
  barrier();
  sums[thread] = mine;
  barrier();
  float sum = 0.0;
  for (uint s = 0; s < kShares; ++s) sum += sums[s * kColumns + thread % kColumns];
  return sum;
}

void main() {
  const uint thread = gl_LocalInvocationID.x, share = thread / kColumns;
  const uint parts = (kValueSize + kColumns - 1) / kColumns;
  const uint head = gl_WorkGroupID.x / parts;
  const uint column = gl_WorkGroupID.x % parts * kColumns + thread % kColumns;
  const bool inside = column < kValueSize;
  const uvec2 of_key = key_head_of(head);
  Floats state = state_at(states.at[gl_WorkGroupID.y], layer_bytes);
  const uint at = of_key.x * kHeadFloats + kEarlier + of_key.y * kKeySize * kValueSize + column;
  const uint first_key = share * kShare;
  float own[kShare];
  for (uint i = 0; i < kShare; ++i) {
    const bool used = inside && first_key + i < kKeySize;
    own[i] = used ? state.at[at + (first_key + i) * kValueSize] : 0.0;
  }
  const uint first_row = sequences.at[gl_WorkGroupID.y * 2];
  const uint end_row = first_row + sequences.at[gl_WorkGroupID.y * 2 + 1];
  for (uint row = first_row; row < end_row; ++row) {
    const uint from = row * kInputs;
    barrier();
    for (uint i = thread; i < kKeySize; i += kThreads) {
      query[i] = inputs.at[from + of_key.x * kKeySize + i];
      key[i] = inputs.at[from + kKeys + of_key.x * kKeySize + i];
    }
    barrier();
    float sum = 0.0;
    for (uint i = 0; i < kShare; ++i) {
      if (first_key + i < kKeySize) sum = fma(key[first_key + i], own[i], sum);
    }
    sum = sum_of_column(sum);
    const uint item = row * kValueHeads + head;
    const float decay = exp(decay_rates.at[head] * softplus(decays.at[item] + decay_biases.at[head]));
    const float beta = 1.0 / (1.0 + exp(-betas.at[item]));
    const float value =
        inside ? inputs.at[from + 2 * kKeys + head * kValueSize + column] : 0.0;
    const float delta = beta * fma(-decay, sum, value);
    float made = 0.0;
    for (uint i = 0; i < kShare; ++i) {
      if (first_key + i >= kKeySize) break;
      own[i] = fma(key[first_key + i], delta, decay * own[i]);
      made = fma(query[first_key + i], own[i], made);
    }
    made = sum_of_column(made);
    if (share == 0 && inside) mixed.at[row * kValues + head * kValueSize + column] = made;
  }
  for (uint i = 0; i < kShare; ++i) {
    if (inside && first_key + i < kKeySize) state.at[at + (first_key + i) * kValueSize] = own[i];
  }
}
