// As products.comp, but each workgroup has rows of one of several matrices: those of an expert (a
// tile, see ChosenExperts), or of a head.
#version 450
#include "common.glsl"
#include "products.glsl"

// kGather: the rows of x are those of the pairs' rows, else of their places. kHeads: matrix h has
// the rows [h * tokens, (h + 1) * tokens) of x, and the columns from h * y_stride on of y.
const uint kGather = 1, kBias = 2, kHeads = 4;

layout(push_constant) uniform Arguments {
  Addresses matrices;
  Words x;  // see Input
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

void main() {
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
  for (uint t = 0; t < kTokens; ++t) {
    x_row[t] = first + min(t, count - 1);
    if ((flags & kHeads) != 0) x_row[t] += matrix * tokens;
    if ((flags & kGather) != 0) x_row[t] = pair_rows.at[x_row[t]];
  }
  add_products(Words(matrices.at[matrix]), gl_WorkGroupID.x * group_words,
               Input(x, scales, columns), count);
  const uint row = gl_WorkGroupID.x * kGroupRows + weight_row();
  const bool writes = gl_LocalInvocationID.x < kGroupRows && row < rows;
  for (uint t = 0; t < kTokens; ++t) {
    const float product = whole_sum(t);
    if (!writes || t >= count) continue;
    const float added = (flags & kBias) != 0 ? bias.at[matrix * rows + row] : 0.0;
    const uint to = (flags & kHeads) != 0 ? ((first + t) * heads + matrix) * y_stride
                                          : (first + t) * y_stride;
    y.at[to + row] = product + added;
  }
}
