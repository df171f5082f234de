// Queries and keys are normed and rotated, queries scaled, keys and values stored in the KV cache:
// RopeAndStore, of one row and one head (the query heads first, then the KV heads).
#version 450
#include "common.glsl"
#include "kv.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint kHeads = 1;
layout(constant_id = 1) const uint kKvHeads = 1;

const uint kHeadNorm = 1, kValueNorm = 2, kKeysAsValues = 4, kRowNorm = 8;

layout(push_constant) uniform Arguments {
  Floats queries;  // [rows, heads * key_size]
  Floats keys;     // [rows, kv_heads * key_size]
  Floats values;   // [rows, kv_heads * value_size]
  Floats cosines;  // [rows, angles]
  Floats sines;
  Floats factors;  // of each row's queries
  Words places;    // of each row: its position, and its sequence's first entry in `pages`
  Addresses pages;
  Floats query_norm;  // [key_size]; of a row norm [heads * key_size]
  Floats key_norm;
  Floats row_squares;  // [rows, 2]: of queries and of keys
  uint layer_bytes;  // from a page's start to the layer
  uint first_pair;
  uint pairs;
  uint angles;
  float epsilon;
  float scale;
  float query_width;  // of what a row norm is over
  float key_width;
  uint flags;
};

shared float head[kKeySize];
shared float value[kValueSize];
shared float sums[64];

float sum_of_squares(bool of_value, uint size) {
  const uint thread = gl_LocalInvocationID.x;
  float squares = 0.0;
  for (uint i = thread; i < size; i += 64) {
    const float each = of_value ? value[i] : head[i];
    squares = fma(each, each, squares);
  }
  sums[thread] = squares;
  barrier();
  for (uint half_ = 32; half_ > 0; half_ /= 2) {
    if (thread < half_) sums[thread] += sums[thread + half_];
    barrier();
  }
  return sums[0];
}

void main() {
  const uint item = gl_WorkGroupID.x, row = gl_WorkGroupID.y, thread = gl_LocalInvocationID.x;
  const bool query = item < kHeads;
  const uint kv_head = query ? 0 : item - kHeads;
  const uint from = query ? (row * kHeads + item) * kKeySize : (row * kKvHeads + kv_head) * kKeySize;
  for (uint i = thread; i < kKeySize; i += 64)
    head[i] = query ? queries.at[from + i] : keys.at[from + i];
  if (!query && (flags & kKeysAsValues) == 0) {
    for (uint i = thread; i < kValueSize; i += 64)
      value[i] = values.at[(row * kKvHeads + kv_head) * kValueSize + i];
  }
  barrier();
  if (!query && (flags & kKeysAsValues) != 0) {
    for (uint i = thread; i < kValueSize; i += 64) value[i] = head[i];
    barrier();
  }
  if (!query && (flags & kValueNorm) != 0) {
    const float factor = 1.0 / sqrt(sum_of_squares(true, kValueSize) / float(kValueSize) + epsilon);
    barrier();
    for (uint i = thread; i < kValueSize; i += 64) value[i] *= factor;
    barrier();
  }
  if ((flags & kHeadNorm) != 0) {
    const float factor = 1.0 / sqrt(sum_of_squares(false, kKeySize) / float(kKeySize) + epsilon);
    barrier();
    for (uint i = thread; i < kKeySize; i += 64)
      head[i] *= factor * (query ? query_norm.at[i] : key_norm.at[i]);
    barrier();
  }
  if ((flags & kRowNorm) != 0) {
    const float squares = row_squares.at[row * 2 + (query ? 0 : 1)];
    const float factor = 1.0 / sqrt(squares / (query ? query_width : key_width) + epsilon);
    const uint first = (query ? item : kv_head) * kKeySize;
    for (uint i = thread; i < kKeySize; i += 64)
      head[i] *= factor * (query ? query_norm.at[first + i] : key_norm.at[first + i]);
    barrier();
  }
  for (uint i = thread; i < pairs; i += 64) {
    const float c = cosines.at[row * angles + first_pair + i];
    const float s = sines.at[row * angles + first_pair + i];
    const float a = head[i], b = head[i + pairs];
    head[i] = a * c - b * s;
    head[i + pairs] = b * c + a * s;
  }
  barrier();
  if (query) {
    const float factor = scale * factors.at[row];
    for (uint i = thread; i < kKeySize; i += 64) queries.at[from + i] = head[i] * factor;
    return;
  }
  const uint position = places.at[row * 2];
  const uvec2 page = pages.at[places.at[row * 2 + 1] + position / kPageSize];
  const uint slot = position % kPageSize, at = layer_bytes + kv_head * kHeadBytes;
  for (uint i = thread; i < kKeySize; i += 64) {
    TOP_OF(head, i, top)
    store_key(page, at, i, slot, head[i], top);
  }
  for (uint i = thread; i < kValueSize; i += 64) {
    TOP_OF(value, i, top)
    store_value(page, at, slot, i, value[i], top);
  }
}
