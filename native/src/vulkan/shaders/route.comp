// Route, of one row: scores of the router's products, and the best of them. As choose() in
// layers/experts.cpp, but for the order of sums. A row that is the only one needs no tiles.comp: each
// of its experts is a tile.
#version 450
#include "common.glsl"
const uint kThreads = 256;
layout(local_size_x = 256) in;
#include "sums.glsl"
layout(constant_id = 0) const uint kCount = 1;   // experts
layout(constant_id = 1) const uint kGroups = 1;  // of experts

const uint kSigmoid = 1, kNormalize = 2, kChoiceBias = 4, kScales = 8, kOneRow = 16;
#define kNever uintBitsToFloat(0xff800000u)
const uint kGroupSize = kCount / kGroups;

layout(push_constant) uniform Arguments {
  Floats router;   // [rows, experts]
  Floats choices;  // [rows, 2 * used]: experts, then weights
  Floats choice_bias;
  Floats expert_scales;
  Words row_places;  // of kOneRow, as in tiles.comp
  Words pair_rows;
  Words tiles;
  uint used;
  uint used_groups;
  float scale;
  uint flags;
};

shared float scores[kCount];
shared float ranks[kCount];
shared float group_ranks[kGroups];
shared float best_ranks[kThreads];
shared uint best_experts[kThreads];

float largest_of_all(float mine) {
  const uint thread = gl_LocalInvocationID.x;
  barrier();
  best_ranks[thread] = mine;
  barrier();
  for (uint half_ = kThreads / 2; half_ > 0; half_ /= 2) {
    if (thread < half_) best_ranks[thread] = max(best_ranks[thread], best_ranks[thread + half_]);
    barrier();
  }
  return best_ranks[0];
}

bool is_finite(float x) { return (floatBitsToUint(x) & 0x7fffffffu) < kInfinity; }

// Ranks of experts outside the best groups, by the sum of their two best, become -inf.
void keep_best_groups() {
  const uint thread = gl_LocalInvocationID.x;
  for (uint g = thread; g < kGroups; g += kThreads) {
    float first = kNever, second = kNever;
    for (uint e = g * kGroupSize; e < (g + 1) * kGroupSize; ++e) {
      second = max(second, min(first, ranks[e]));
      first = max(first, ranks[e]);
    }
    group_ranks[g] = kGroupSize > 1 ? first + second : first;
  }
  barrier();
  if (thread == 0) {
    for (uint left = kGroups; left > used_groups; --left) {
      // The last of equal ones goes first.
      uint worst = kGroups;
      for (uint g = 0; g < kGroups; ++g) {
        if (group_ranks[g] > kNever && (worst == kGroups || group_ranks[g] <= group_ranks[worst]))
          worst = g;
      }
      if (worst == kGroups) break;
      group_ranks[worst] = kNever;
    }
  }
  barrier();
  for (uint e = thread; e < kCount; e += kThreads) {
    if (!(group_ranks[e / kGroupSize] > kNever)) ranks[e] = kNever;
  }
  barrier();
}

// The expert of the highest rank; the first of equal ones.
uint best_of_all() {
  const uint thread = gl_LocalInvocationID.x;
  float rank = kNever;
  uint best = kCount;
  for (uint e = thread; e < kCount; e += kThreads) {
    if (ranks[e] > rank || best == kCount) {
      rank = ranks[e];
      best = e;
    }
  }
  barrier();
  best_ranks[thread] = rank;
  best_experts[thread] = best;
  barrier();
  for (uint half_ = kThreads / 2; half_ > 0; half_ /= 2) {
    if (thread < half_) {
      const float other = best_ranks[thread + half_], own = best_ranks[thread];
      const uint other_expert = best_experts[thread + half_];
      if (other > own || (other == own && other_expert < best_experts[thread])) {
        best_ranks[thread] = other;
        best_experts[thread] = other_expert;
      }
    }
    barrier();
  }
  return best_experts[0];
}

void make_tile(uint k, uint expert) {
  if ((flags & kOneRow) == 0) return;
  row_places.at[k] = k;
  pair_rows.at[k] = 0;
  tiles.at[k * 4] = expert;
  tiles.at[k * 4 + 1] = k;
  tiles.at[k * 4 + 2] = 1;
}

void main() {
  const uint row = gl_WorkGroupID.x, thread = gl_LocalInvocationID.x;
  const uint to = row * 2 * used;
  float largest = kNever, wrong = 0.0;
  for (uint e = thread; e < kCount; e += kThreads) {
    scores[e] = router.at[row * kCount + e];
    largest = max(largest, scores[e]);
    if (!is_finite(scores[e])) wrong = 1.0;
  }
  if ((flags & kSigmoid) != 0) {
    for (uint e = thread; e < kCount; e += kThreads) scores[e] = 1.0 / (1.0 + exp(-scores[e]));
  } else {
    largest = largest_of_all(largest);
    float sum = 0.0;
    for (uint e = thread; e < kCount; e += kThreads) {
      scores[e] = exp(scores[e] - largest);
      sum += scores[e];
    }
    sum = sum_of_all(sum);
    for (uint e = thread; e < kCount; e += kThreads) scores[e] /= sum;
  }
  for (uint e = thread; e < kCount; e += kThreads) {
    ranks[e] = scores[e] + ((flags & kChoiceBias) != 0 ? choice_bias.at[e] : 0.0);
    if (!is_finite(ranks[e])) wrong = 1.0;
  }
  if (largest_of_all(wrong) > 0.0) {
    // Any experts, with weights of NaN: the next sync notices.
    for (uint k = thread; k < used; k += kThreads) {
      choices.at[to + k] = float(k);
      choices.at[to + used + k] = uintBitsToFloat(0x7fc00000u);
      make_tile(k, k);
    }
    return;
  }
  if (used_groups < kGroups) keep_best_groups();
  float sum = 0.0;
  for (uint k = 0; k < used; ++k) {
    const uint best = best_of_all();
    sum += scores[best];
    if (thread == 0) {
      choices.at[to + k] = float(best);
      choices.at[to + used + k] = scores[best];
      make_tile(k, best);
      ranks[best] = kNever;
    }
    barrier();
  }
  // Each thread reads what thread 0 wrote, so that one does it all: they are few.
  if (thread != 0) return;
  for (uint k = 0; k < used; ++k) {
    float weight = choices.at[to + used + k];
    if ((flags & kNormalize) != 0) weight /= sum;
    weight *= scale;
    if ((flags & kScales) != 0) weight *= expert_scales.at[uint(choices.at[to + k])];
    choices.at[to + used + k] = weight;
  }
}
