// The sums of products.comp and grouped_products.comp. A workgroup has one group of eight weight
// rows and up to kTokens rows of activations. The weights are packed as for the CPU
// (formats/matrix.h): a load of eight threads next to each other holds the same columns of the
// eight rows, and loads of all threads lie side by side. TYPE is a number of hearth::Type.
//
// A sum does not depend on the number of tokens: it is made by the same threads in the same order.
#if TYPE != 0 && TYPE != 1 && TYPE != 15
#define BLOCKS
#include "blocks.glsl"
#endif
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint kTokens = 1;

// Rows of x: f32 [rows, columns], or int8 and their scales, [rows, columns / 32].
struct Input {
  Words x;
  Floats scales;
  uint columns;
};

uint x_row[kTokens];  // of each token
float sum[kTokens];   // of each token: this thread's part
shared float sums[128];

uint weight_row() { return gl_LocalInvocationID.x % kGroupRows; }

// This thread's parts of the sums, of `count` tokens. group: where the weight rows begin, in words.
void add_products(Words weights, uint group, Input rows, uint count) {
  const uint row = weight_row(), lane = gl_LocalInvocationID.x / kGroupRows;
  for (uint t = 0; t < kTokens; ++t) sum[t] = 0.0;
#ifdef BLOCKS
  // Four threads of a row share a part of 32 columns: each has columns 4k to 4k + 3, and those 16
  // further.
  const uint quad = lane % 4, parts = rows.columns / kBlock;
  for (uint p = lane / 4; p < parts; p += 4) {
    const Part part = load_part(weights, group + p / kParts * kBlockWords, p % kParts, row, quad);
    for (uint t = 0; t < kTokens; ++t) {
      if (t >= count) break;
      const uint at = x_row[t] * parts + p;
      const uint low = rows.x.at[at * 8 + quad], high = rows.x.at[at * 8 + 4 + quad];
      const int low_sum = sum4(low), high_sum = sum4(high);
      const int whole = part.scales.x * (dot4(part.codes.x, low) - part.offset * low_sum) +
                        part.scales.y * (dot4(part.codes.y, high) - part.offset * high_sum);
      const float scale = rows.scales.at[at];
      sum[t] += float(whole) * (part.scale * scale);
#ifdef MINIMUM
      const int least = part.minima.x * low_sum + part.minima.y * high_sum;
      sum[t] += float(least) * (part.minimum * scale);
#endif
    }
  }
#else
  for (uint c = lane; c < rows.columns; c += 16) {
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
      sum[t] = fma(w, uintBitsToFloat(rows.x.at[x_row[t] * rows.columns + c]), sum[t]);
    }
  }
#endif
}

// The sum of the parts of a token: of the first eight threads each has a row's. All threads call it.
float whole_sum(uint token) {
  const uint thread = gl_LocalInvocationID.x;
  barrier();
  sums[thread] = sum[token];
  barrier();
  for (uint half_ = 64; half_ >= kGroupRows; half_ /= 2) {
    if (thread < half_) sums[thread] += sums[thread + half_];
    barrier();
  }
  return sums[thread];
}
