// LatentStore, of one row and one query head, or (behind the heads) the row's key. Value size: of
// the layer's pages, which hold no values.
#version 450
#include "common.glsl"
#include "kv.glsl"
const uint kThreads = 128;
layout(local_size_x = 128) in;
#include "sums.glsl"
layout(constant_id = 0) const uint kHeads = 1;

layout(push_constant) uniform Arguments {
  Floats full_queries;  // [rows, heads * (nope_size + rope_size)]
  Floats head_queries;  // [heads, rows, nope_size]
  Floats queries;       // [rows, heads * key_size]
  Floats keys;          // [rows, key_size]
  Floats cosines;       // [rows, angles]
  Floats sines;
  Words places;  // as in rope.comp
  Addresses pages;
  Floats latent_norm;
  uint layer_bytes;
  uint nope_size;
  uint first_pair;
  uint pairs;
  uint angles;
  float epsilon;
  float scale;
};

const uint kRopeSize = kKeySize - kValueSize;  // kValueSize: of the latent

shared float key[kKeySize];
shared float rotated[kRopeSize];

void rotate(uint row) {
  barrier();
  for (uint i = gl_LocalInvocationID.x; i < pairs; i += kThreads) {
    const float c = cosines.at[row * angles + first_pair + i];
    const float s = sines.at[row * angles + first_pair + i];
    const float a = rotated[i], b = rotated[i + pairs];
    rotated[i] = a * c - b * s;
    rotated[i + pairs] = b * c + a * s;
  }
  barrier();
}

void main() {
  const uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, thread = gl_LocalInvocationID.x;
  const bool query = head < kHeads;
  const uint from = query ? (row * kHeads + head) * (nope_size + kRopeSize) : row * kKeySize;
  const uint rope_from = from + (query ? nope_size : kValueSize);
  for (uint i = thread; i < kRopeSize; i += kThreads)
    rotated[i] = query ? full_queries.at[rope_from + i] : keys.at[rope_from + i];
  rotate(row);
  if (query) {
    const uint part = (head * gl_NumWorkGroups.y + row) * nope_size;
    for (uint i = thread; i < nope_size; i += kThreads)
      head_queries.at[part + i] = full_queries.at[from + i] * scale;
    const uint to = (row * kHeads + head) * kKeySize + kValueSize;
    for (uint i = thread; i < kRopeSize; i += kThreads) queries.at[to + i] = rotated[i] * scale;
    return;
  }
  float squares = 0.0;
  for (uint i = thread; i < kValueSize; i += kThreads) {
    key[i] = keys.at[from + i];
    squares = fma(key[i], key[i], squares);
  }
  const float factor = 1.0 / sqrt(sum_of_all(squares) / float(kValueSize) + epsilon);
  for (uint i = thread; i < kValueSize; i += kThreads) key[i] *= factor * latent_norm.at[i];
  for (uint i = thread; i < kRopeSize; i += kThreads) key[kValueSize + i] = rotated[i];
  barrier();
  const uint position = places.at[row * 2];
  const uvec2 page = pages.at[places.at[row * 2 + 1] + position / kPageSize];
  for (uint i = thread; i < kKeySize; i += kThreads) {
    TOP_OF(key, i, top)
    store_key(page, layer_bytes, i, position % kPageSize, key[i], top);
  }
}
