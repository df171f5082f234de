// The pairs of row and expert, expert by expert, and cut into tiles: by one workgroup, whose threads
// have some neighbouring experts each. Pairs of one expert come in no order: a pair's results do not
// depend on its neighbours.
#version 450
#include "common.glsl"
const uint kThreads = 256;
layout(local_size_x = 256) in;
layout(constant_id = 0) const uint kCount = 1;  // experts

layout(push_constant) uniform Arguments {
  Floats choices;  // [rows, 2 * used]
  Words places;    // [rows, used]
  Words pair_rows;
  Words tiles;  // [tile_count, 4]: expert, first place, places
  uint rows;
  uint used;
  uint tile_places;
  uint tile_count;
};

shared uint counts[kCount];
shared uint next[kCount];  // place of each expert's next pair
shared uvec2 before[kThreads];  // pairs and tiles of all threads up to this one's

void main() {
  const uint thread = gl_LocalInvocationID.x;
  for (uint e = thread; e < kCount; e += kThreads) counts[e] = 0;
  barrier();
  const uint pairs = rows * used;
  for (uint pair = thread; pair < pairs; pair += kThreads)
    atomicAdd(counts[uint(choices.at[pair / used * 2 * used + pair % used])], 1);
  barrier();
  const uint each = (kCount + kThreads - 1) / kThreads;
  const uint begin = min(thread * each, kCount), end = min(begin + each, kCount);
  uvec2 own = uvec2(0);
  for (uint e = begin; e < end; ++e)
    own += uvec2(counts[e], (counts[e] + tile_places - 1) / tile_places);
  before[thread] = own;
  barrier();
  for (uint apart = 1; apart < kThreads; apart *= 2) {
    const uvec2 more = thread >= apart ? before[thread - apart] : uvec2(0);
    barrier();
    before[thread] += more;
    barrier();
  }
  uint place = before[thread].x - own.x, tile = before[thread].y - own.y;
  for (uint e = begin; e < end; ++e) {
    next[e] = place;
    for (uint done = 0; done < counts[e]; done += tile_places, ++tile) {
      tiles.at[tile * 4] = e;
      tiles.at[tile * 4 + 1] = place + done;
      tiles.at[tile * 4 + 2] = min(counts[e] - done, tile_places);
    }
    place += counts[e];
  }
  for (uint t = before[kThreads - 1].y + thread; t < tile_count; t += kThreads)
    tiles.at[t * 4 + 2] = 0;
  barrier();
  for (uint pair = thread; pair < pairs; pair += kThreads) {
    const uint row = pair / used;
    const uint to = atomicAdd(next[uint(choices.at[row * 2 * used + pair % used])], 1);
    places.at[pair] = to;
    pair_rows.at[to] = row;
  }
}
