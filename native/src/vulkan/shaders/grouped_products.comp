// As products.comp, but each workgroup has rows of one of several matrices: those of an expert (a
// tile, see ChosenExperts), or of a head.
#version 450
#include "common.glsl"
#if TYPE != 0 && TYPE != 1 && TYPE != 15
#define BLOCKS
#include "blocks.glsl"
#endif
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint kTokens = 1;

// kGather: the rows of x are those of the pairs' rows, else of their places. kHeads: matrix h has
// the rows [h * tokens, (h + 1) * tokens) of x, and the columns from h * y_stride on of y.
const uint kGather = 1, kBias = 2, kHeads = 4;

layout(push_constant) uniform Arguments {
  Addresses matrices;
  Words x;
  Floats scales;
  Floats y;
  Floats bias;  // [matrices, rows]
  Words tiles;
  Words pair_rows;
  uint columns;
  uint rows;    // of each matrix
  uint tokens;  // of kHeads
  uint y_stride;
  uint group_words;
  uint flags;
};

shared float sums[128];

void main() {
  const uint thread = gl_LocalInvocationID.x, row = thread % kGroupRows, lane = thread / kGroupRows;
  const uint group = gl_WorkGroupID.x * group_words;
  uint matrix, first, count, heads = 1;
  if ((flags & kHeads) != 0) {
    const uint of_head = (tokens + kTokens - 1) / kTokens;
    heads = gl_NumWorkGroups.y / of_head;
    matrix = gl_WorkGroupID.y / of_head;
    first = gl_WorkGroupID.y % of_head * kTokens;
    count = min(tokens - first, kTokens);
  } else {
    matrix = tiles.at[gl_WorkGroupID.y * 4];
    first = tiles.at[gl_WorkGroupID.y * 4 + 1];
    count = tiles.at[gl_WorkGroupID.y * 4 + 2];
  }
  if (count == 0) return;
  Words weights = Words(matrices.at[matrix]);
  uint x_row[kTokens];
  for (uint t = 0; t < kTokens; ++t) {
    x_row[t] = first + min(t, count - 1);
    if ((flags & kHeads) != 0) x_row[t] += matrix * tokens;
    if ((flags & kGather) != 0) x_row[t] = pair_rows.at[x_row[t]];
  }
  float sum[kTokens];
  for (uint t = 0; t < kTokens; ++t) sum[t] = 0.0;
#ifdef BLOCKS
  // Four threads of a row share a part of 32 columns: each has columns 4k to 4k + 3, and those 16
  // further.
  const uint quad = lane % 4, parts = columns / kBlock;
  for (uint p = lane / 4; p < parts; p += 4) {
    const Part part = load_part(weights, group + p / kParts * kBlockWords, p % kParts, row, quad);
    for (uint t = 0; t < kTokens; ++t) {
      if (t >= count) break;
      const uint at = x_row[t] * parts + p;
      const uint low = x.at[at * 8 + quad], high = x.at[at * 8 + 4 + quad];
      const int low_sum = sum4(low), high_sum = sum4(high);
      const int whole = part.scales.x * (dot4(part.codes.x, low) - part.offset * low_sum) +
                        part.scales.y * (dot4(part.codes.y, high) - part.offset * high_sum);
      const float scale = scales.at[at];
      sum[t] += float(whole) * (part.scale * scale);
#ifdef MINIMUM
      const int least = part.minima.x * low_sum + part.minima.y * high_sum;
      sum[t] += float(least) * (part.minimum * scale);
#endif
    }
  }
#else
  for (uint c = lane; c < columns; c += 16) {
#if TYPE == 0
    const float w = uintBitsToFloat(weights.at[group + c * kGroupRows + row]);
#else
    const uint pair = weights.at[group + (c * kGroupRows + row) / 2];
#if TYPE == 1
    const vec2 halves = unpackHalf2x16(pair);
    const float w = row % 2 == 0 ? halves.x : halves.y;
#else
    const float w = uintBitsToFloat(row % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
#endif
#endif
    for (uint t = 0; t < kTokens; ++t) {
      if (t >= count) break;
      sum[t] = fma(w, uintBitsToFloat(x.at[x_row[t] * columns + c]), sum[t]);
    }
  }
#endif
  for (uint t = 0; t < kTokens; ++t) {
    barrier();
    sums[thread] = sum[t];
    barrier();
    for (uint half_ = 64; half_ >= kGroupRows; half_ /= 2) {
      if (thread < half_) sums[thread] += sums[thread + half_];
      barrier();
    }
    const uint out_row = gl_WorkGroupID.x * kGroupRows + thread;
    if (thread < kGroupRows && out_row < rows && t < count) {
      const float added = (flags & kBias) != 0 ? bias.at[matrix * rows + out_row] : 0.0;
      const uint to = (flags & kHeads) != 0 ? ((first + t) * heads + matrix) * y_stride
                                            : (first + t) * y_stride;
      y.at[to + out_row] = sums[thread] + added;
    }
  }
}
