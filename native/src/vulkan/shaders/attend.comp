// mixed = softmax(queries keys^T) values of one row and one head, page by page with a running
// softmax (Milakov, Gimelshein: Online normalizer calculation for softmax, 2018).
#version 450
#include "common.glsl"
#include "kv.glsl"
const uint kThreads = 128;
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint kHeads = 1;
layout(constant_id = 1) const uint kKvHeads = 1;

const uint kSinks = 1, kGate = 2, kLatent = 4;

layout(push_constant) uniform Arguments {
  Floats queries;  // [rows, heads * key_size], scaled
  Floats mixed;    // [rows, heads * value_size]; of latent attention [heads, rows, value_size]
  Floats gates;    // [rows, heads * value_size]
  Floats sinks;    // [heads]
  Words places;    // as in rope.comp
  Addresses pages;
  uint layer_bytes;
  uint window;     // positions that a query sees, with its own; 0: all
  float softcap;
  uint flags;
};

const uint kValuesOfThread = (kValueSize + kThreads - 1) / kThreads;

shared float query[kKeySize];
shared float scores[kThreads];
shared float reduced[kThreads];

float largest_of_all(float mine) {
  const uint thread = gl_LocalInvocationID.x;
  reduced[thread] = mine;
  barrier();
  for (uint half_ = kThreads / 2; half_ > 0; half_ /= 2) {
    if (thread < half_) reduced[thread] = max(reduced[thread], reduced[thread + half_]);
    barrier();
  }
  const float largest = reduced[0];
  barrier();
  return largest;
}

void main() {
  const uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, thread = gl_LocalInvocationID.x;
  const uint kv_head = head / (kHeads / kKvHeads);
  for (uint i = thread; i < kKeySize; i += kThreads)
    query[i] = queries.at[(row * kHeads + head) * kKeySize + i];
  barrier();
  const uint end = places.at[row * 2] + 1, first_page = places.at[row * 2 + 1];
  const uint begin = window == 0 || end <= window ? 0 : end - window;
  const uint at = layer_bytes + kv_head * kHeadBytes;
  float largest = uintBitsToFloat(0xff800000u), sum = 0.0;
  float made[kValuesOfThread];
  for (uint v = 0; v < kValuesOfThread; ++v) made[v] = 0.0;
  for (uint p = begin / kPageSize; p * kPageSize < end; ++p) {
    const uvec2 page = pages.at[first_page + p];
    const uint low = max(begin, p * kPageSize) - p * kPageSize;
    const uint high = min(end - p * kPageSize, kPageSize);
    for (uint from = low; from < high; from += kThreads) {
      const uint slot = from + thread, count = min(high - from, kThreads);
      float score = uintBitsToFloat(0xff800000u);
      if (thread < count) {
        score = 0.0;
        for (uint i = 0; i < kKeySize; ++i)
          score = fma(query[i], load_key(page, at, i, slot), score);
        if (softcap > 0.0) score = softcap * safe_tanh(score / softcap);
      }
      const float highest = max(largest, largest_of_all(score));
      const float shrink = exp(largest - highest);
      largest = highest;
      scores[thread] = thread < count ? exp(score - largest) : 0.0;
      barrier();
      sum *= shrink;
      for (uint v = 0; v < kValuesOfThread; ++v) made[v] *= shrink;
      for (uint s = 0; s < count; ++s) {
        const float share = scores[s];
        sum += share;
        for (uint v = 0; v < kValuesOfThread; ++v) {
          const uint e = v * kThreads + thread;
          if (e >= kValueSize) continue;
          // Of latent attention values are the first elements of keys.
          const float value = (flags & kLatent) != 0 ? load_key(page, at, e, from + s)
                                                     : load_value(page, at, from + s, e);
          made[v] = fma(share, value, made[v]);
        }
      }
      barrier();
    }
  }
  float shrink = 1.0;
  if ((flags & kSinks) != 0) {
    // A score of the head's own, whose value is zero.
    const float sink = sinks.at[head], highest = max(largest, sink);
    shrink = exp(largest - highest);
    sum = sum * shrink + exp(sink - highest);
  }
  for (uint v = 0; v < kValuesOfThread; ++v) {
    const uint e = v * kThreads + thread;
    if (e >= kValueSize) continue;
    const uint item = (flags & kLatent) != 0 ? head * gl_NumWorkGroups.y + row : row * kHeads + head;
    const uint to = item * kValueSize + e;
    float value = made[v] * shrink / sum;
    if ((flags & kGate) != 0) value /= 1.0 + exp(-gates.at[to]);
    mixed.at[to] = value;
  }
}
