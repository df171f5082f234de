// mixed = softmax(queries keys^T) values of one head, with a running softmax (Milakov, Gimelshein:
// Online normalizer calculation for softmax, 2018). A workgroup has some rows of one sequence, which
// share what it reads of keys and values.
//
// Positions are cut into chunks, always at the same places, and a row's chunks are added up in their
// order. So its result does not depend on which rows it shares a workgroup with, nor on whether
// several workgroups have some chunks each. (Their results are then merged by a second dispatch.)
#version 450
#include "common.glsl"
#include "kv.glsl"
const uint kThreads = 128;
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint kHeads = 1;
layout(constant_id = 1) const uint kKvHeads = 1;
layout(constant_id = 7) const uint kRows = 1;       // of a workgroup, at most
layout(constant_id = 8) const uint kDivisions = 1;  // workgroups that have a row's chunks by turns
layout(constant_id = 9) const uint kPass = 0;

const uint kWhole = 0, kParts = 1, kMerge = 2;  // of kPass
const uint kSinks = 1, kGate = 2, kLatent = 4;
const uint kChunk = 512;  // positions; see kChunkPositions in recorder.h

layout(push_constant) uniform Arguments {
  Floats queries;  // [rows, heads * key_size], scaled
  Floats mixed;    // [rows, heads * value_size]; of latent attention [heads, rows, value_size]
  Floats gates;    // [rows, heads * value_size]
  Floats sinks;    // [heads]
  Words places;    // as in rope.comp
  Addresses pages;
  Floats parts;  // [rows, heads, most_chunks, 2 + value_size]: largest score, sum, values
  uint layer_bytes;
  uint window;  // positions that a query sees, with its own; 0: all
  float softcap;
  uint flags;
  uint rows;
  uint most_chunks;
};

const uint kValuesOfThread = (kValueSize + kThreads - 1) / kThreads;
const uint kShares = 16;  // of a block's scores, whose largest are found apart
#define kNever uintBitsToFloat(0xff800000u)

shared float query[kRows * kKeySize];
shared float scores[kRows * kThreads];
shared float reduced[kRows * kShares];

// A running softmax of each row; every thread has some elements of the values.
struct Softmax {
  float largest[kRows];
  float sum[kRows];
  float made[kRows * kValuesOfThread];
};

// Of the chunk that is read, and of all chunks so far.
Softmax chunk, whole;

uint begin_of(uint end) { return window == 0 || end <= window ? 0 : end - window; }

uint part_at(uint row, uint head, uint number) {
  return ((row * kHeads + head) * most_chunks + number) * (2 + kValueSize);
}

void begin_softmax(out Softmax softmax) {
  for (uint r = 0; r < kRows; ++r) {
    softmax.largest[r] = kNever;
    softmax.sum[r] = 0.0;
  }
  for (uint i = 0; i < kRows * kValuesOfThread; ++i) softmax.made[i] = 0.0;
}

// whole = whole and chunk. Spelled out: its bits must not depend on who does it.
void merge(uint r) {
  const float highest = max(whole.largest[r], chunk.largest[r]);
  const float base = highest > kNever ? highest : 0.0;
  const float before = exp(whole.largest[r] - base), more = exp(chunk.largest[r] - base);
  precise float of_chunk = chunk.sum[r] * more;
  precise float sum = fma(whole.sum[r], before, of_chunk);
  whole.largest[r] = highest;
  whole.sum[r] = sum;
  for (uint v = 0; v < kValuesOfThread; ++v) {
    precise float own = chunk.made[r * kValuesOfThread + v] * more;
    precise float made = fma(whole.made[r * kValuesOfThread + v], before, own);
    whole.made[r * kValuesOfThread + v] = made;
  }
}

// Positions [block, block + kThreads) of a sequence, of which those of [begin, end) are read. Rows
// are the `count` ones from `position` on.
void attend_block(uint at, uint first_page, uint position, uint count, uint block, uint begin,
                  uint end) {
  const uint thread = gl_LocalInvocationID.x, own = block + thread;
  float score[kRows];
  for (uint r = 0; r < kRows; ++r) score[r] = 0.0;
  if (own >= begin && own < end) {
    const uvec2 page = pages.at[first_page + own / kPageSize];
    for (uint i = 0; i < kKeySize; ++i) {
      const float key = load_key(page, at, i, own % kPageSize);
      for (uint r = 0; r < kRows; ++r) score[r] = fma(query[r * kKeySize + i], key, score[r]);
    }
  }
  bool seen[kRows];
  for (uint r = 0; r < kRows; ++r) {
    const uint last = position + r + 1;
    seen[r] = r < count && own < last && own >= begin_of(last);
    if (softcap > 0.0) score[r] = softcap * safe_tanh(score[r] / softcap);
    scores[r * kThreads + thread] = seen[r] ? score[r] : kNever;
  }
  barrier();
  for (uint each = thread; each < kRows * kShares; each += kThreads) {
    float largest = kNever;
    for (uint i = 0; i < kThreads / kShares; ++i)
      largest = max(largest, scores[each * (kThreads / kShares) + i]);
    reduced[each] = largest;
  }
  barrier();
  for (uint r = 0; r < kRows; ++r) {
    float highest = chunk.largest[r];
    for (uint i = 0; i < kShares; ++i) highest = max(highest, reduced[r * kShares + i]);
    const float base = highest > kNever ? highest : 0.0;
    const float shrink = exp(chunk.largest[r] - base);
    chunk.largest[r] = highest;
    chunk.sum[r] *= shrink;
    for (uint v = 0; v < kValuesOfThread; ++v) chunk.made[r * kValuesOfThread + v] *= shrink;
    scores[r * kThreads + thread] = seen[r] ? exp(score[r] - base) : 0.0;
  }
  barrier();
  for (uint s = max(block, begin); s < min(block + kThreads, end); ++s) {
    const uvec2 page = pages.at[first_page + s / kPageSize];
    for (uint r = 0; r < kRows; ++r) chunk.sum[r] += scores[r * kThreads + s - block];
    for (uint v = 0; v < kValuesOfThread; ++v) {
      const uint e = v * kThreads + thread;
      if (e >= kValueSize) continue;
      // Of latent attention values are the first elements of keys.
      const float value = (flags & kLatent) != 0 ? load_key(page, at, e, s % kPageSize)
                                                 : load_value(page, at, s % kPageSize, e);
      for (uint r = 0; r < kRows; ++r) {
        const uint i = r * kValuesOfThread + v;
        chunk.made[i] = fma(scores[r * kThreads + s - block], value, chunk.made[i]);
      }
    }
  }
  barrier();
}

void write_part(uint row, uint head, uint number, uint r) {
  const uint thread = gl_LocalInvocationID.x, to = part_at(row, head, number);
  if (thread == 0) {
    parts.at[to] = chunk.largest[r];
    parts.at[to + 1] = chunk.sum[r];
  }
  for (uint v = 0; v < kValuesOfThread; ++v) {
    const uint e = v * kThreads + thread;
    if (e < kValueSize) parts.at[to + 2 + e] = chunk.made[r * kValuesOfThread + v];
  }
}

void read_part(uint row, uint head, uint number) {
  const uint from = part_at(row, head, number);
  chunk.largest[0] = parts.at[from];
  chunk.sum[0] = parts.at[from + 1];
  for (uint v = 0; v < kValuesOfThread; ++v) {
    const uint e = v * kThreads + gl_LocalInvocationID.x;
    chunk.made[v] = e < kValueSize ? parts.at[from + 2 + e] : 0.0;
  }
}

void finish(uint row, uint head, uint r) {
  float shrink = 1.0, sum = whole.sum[r];
  if ((flags & kSinks) != 0) {
    // A score of the head's own, whose value is zero.
    const float sink = sinks.at[head], highest = max(whole.largest[r], sink);
    shrink = exp(whole.largest[r] - highest);
    sum = sum * shrink + exp(sink - highest);
  }
  for (uint v = 0; v < kValuesOfThread; ++v) {
    const uint e = v * kThreads + gl_LocalInvocationID.x;
    if (e >= kValueSize) continue;
    const uint item = (flags & kLatent) != 0 ? head * rows + row : row * kHeads + head;
    const uint to = item * kValueSize + e;
    float value = whole.made[r * kValuesOfThread + v] * shrink / sum;
    if ((flags & kGate) != 0) value /= 1.0 + exp(-gates.at[to]);
    mixed.at[to] = value;
  }
}

// Rows [row, row + count) of one sequence.
void attend(uint row, uint count, uint head, uint division) {
  const uint position = places.at[row * 2], first_page = places.at[row * 2 + 1];
  const uint begin = begin_of(position + 1), end = position + count;
  const uint at = layer_bytes + head / (kHeads / kKvHeads) * kHeadBytes;
  begin_softmax(whole);
  if (kPass != kMerge) {
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < kRows * kKeySize; i += kThreads) {
      const uint r = i / kKeySize;
      query[i] = r < count ? queries.at[((row + r) * kHeads + head) * kKeySize + i % kKeySize] : 0.0;
    }
    barrier();
  }
  for (uint c = begin / kChunk + division; c * kChunk < end; c += kDivisions) {
    if (kPass == kMerge) {
      read_part(row, head, c);
    } else {
      begin_softmax(chunk);
      const uint last = min((c + 1) * kChunk, end);
      for (uint block = max(c * kChunk, begin / kThreads * kThreads); block < last; block += kThreads)
        attend_block(at, first_page, position, count, block, begin, last);
    }
    for (uint r = 0; r < kRows; ++r) {
      if (kPass == kParts)
        write_part(row, head, c, r);
      else
        merge(r);
    }
  }
  for (uint r = 0; r < count && kPass != kParts; ++r) finish(row + r, head, r);
}

void main() {
  const uint head = gl_WorkGroupID.x / kDivisions, division = gl_WorkGroupID.x % kDivisions;
  const uint last = min((gl_WorkGroupID.y + 1) * kRows, rows);
  for (uint row = gl_WorkGroupID.y * kRows; row < last;) {
    uint count = 1;
    while (row + count < last && places.at[(row + count) * 2 + 1] == places.at[row * 2 + 1]) ++count;
    attend(row, count, head, division);
    row += count;
  }
}
