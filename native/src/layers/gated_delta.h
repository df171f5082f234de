// The gated delta rule (Yang, Kautz, Hatamizadeh: Gated delta networks, 2024): a recurrent mixer,
// with a short convolution before it, as in Qwen3-Next.
//
// Every key head has `group` value heads, and each of these a state S [key_size, value_size], which
// is zero at a sequence's start. Of a row at position p, with its products q, k, v, gate, a, b:
//   q, k, v = activation(c), of each element c = sum over t of weight[t] * x[p - width + 1 + t],
//   with
//             x the products of that element at the last `width` positions, 0 before the first
//   q = q / sqrt(sum(q^2) + 1e-6) / sqrt(key_size), k = k / sqrt(sum(k^2) + 1e-6), of each key head
//   S = exp(decay_rate * softplus(a + decay_bias)) * S
//   S = S + k (sigmoid(b) * (v - S^T k))^T
//   mixed = rms_norm(S^T q) * silu(gate)
//
// Slices of a layer, with shapes [rows, columns]; keys = key heads * key_size, heads = value heads,
// values = heads * value_size:
//   attn_norm [1, hidden]   wq, wk [keys, hidden]   wv, wg (gate) [values, hidden]
//   wa, wb [heads, hidden]   decay_rate, decay_bias [1, heads]
//   conv_q, conv_k [1, keys * width]   conv_v [1, values * width]: of each element, oldest first
//   mixed_norm [1, value_size]   wo [hidden, values]   [attn_out_norm [1, hidden]]
//
// Value heads come by tiles of `tile` key heads: head i of a tile's reads key head i % tile of it.
// With a tile of 1 a key head's value heads are neighbours. With one tile of all key heads, value
// head i reads key head i % key_heads.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/norm.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

struct GatedDelta {
  NormWeights norm, output_norm, mixed_norm;
  Matrix query, key, value, gate, decay, beta, output;
  std::vector<float> query_filter, key_filter, value_filter, decay_rate, decay_bias;
  // Weights with which an RMS norm makes of queries and keys what is said above.
  std::vector<float> query_scale, key_scale;

  // `prefix`: of the layer's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const BlockConfig& block, const std::string& prefix,
                 Slots& slots);
  // `layer` counts from the shard's first. Ends with the sum over all ranks in `partial`.
  void compile(const ShardConfig& config, size_t layer, Program& program) const;
};

GatedDeltaShape gated_delta_shape(const GatedDeltaConfig& config);

// Floats of scratch memory that DeltaRule needs for each thread.
size_t gated_delta_scratch(const GatedDeltaShape& shape);

}  // namespace hearth
