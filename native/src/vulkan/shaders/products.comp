// y[t][r] = sum over c of w[r][c] * x[t][c] + bias[r], of one group of eight weight rows and up to
// kTokens rows of activations. The weights are packed as for the CPU (formats/matrix.h): a load of
// eight threads next to each other holds the same columns of the eight rows, and loads of all
// threads lie side by side. TYPE is a number of hearth::Type.
//
// The sums do not depend on the number of tokens: each is made by the same threads in the same order.
#version 450
#include "common.glsl"
#if TYPE != 0 && TYPE != 1 && TYPE != 15
#define BLOCKS
#include "blocks.glsl"
#endif
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint kTokens = 1;

layout(push_constant) uniform Arguments {
  Words weights;   // the matrix
  Words x;         // f32 [tokens, columns], or int8
  Floats scales;   // of the int8, [tokens, columns / 32]
  Floats y;        // [tokens, y_stride]
  Floats bias;
  uint columns;
  uint rows;       // of the weight
  uint tokens;
  uint y_stride;
  uint group_words;
  uint has_bias;
};

shared float sums[128];

void main() {
  const uint thread = gl_LocalInvocationID.x, row = thread % kGroupRows, lane = thread / kGroupRows;
  const uint group = gl_WorkGroupID.x * group_words;
  const uint first = gl_WorkGroupID.y * kTokens;
  float sum[kTokens];
  for (uint t = 0; t < kTokens; ++t) sum[t] = 0.0;
#ifdef BLOCKS
  // Four threads of a row share a part of 32 columns: each has columns 4k to 4k + 3, and those 16
  // further.
  const uint quad = lane % 4, parts = columns / kBlock;
  for (uint p = lane / 4; p < parts; p += 4) {
    const Part part = load_part(weights, group + p / kParts * kBlockWords, p % kParts, row, quad);
    for (uint t = 0; t < kTokens; ++t) {
      if (first + t >= tokens) break;
      const uint at = (first + t) * parts + p;
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
      if (first + t >= tokens) break;
      sum[t] = fma(w, uintBitsToFloat(x.at[(first + t) * columns + c]), sum[t]);
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
    if (thread < kGroupRows && out_row < rows && first + t < tokens) {
      const float added = has_bias != 0 ? bias.at[out_row] : 0.0;
      y.at[(first + t) * y_stride + out_row] = sums[thread] + added;
    }
  }
}
