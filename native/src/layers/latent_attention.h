// Multi-head latent attention in its absorbed form. A head's key and value weights multiply its
// query and its result; so all heads attend to the latent itself, as if to one KV head.
//
//   score(head, s) = (wk_b[head] q[head]) . latent(s) + rotated q[head] . rotated key(s)
//   result(head) = wv_b[head] (sum over s of softmax(scores)(s) latent(s))
//
// Slices of a layer, with shapes [rows, columns]; what is in brackets depends on the config:
//   attn_norm [1, hidden]   [wq_a [query_rank, hidden]]   [q_a_norm [1, query_rank]]
//   wq [heads * (nope_size + rope_size), query_rank or hidden]
//   wkv_a (latent, then the key to be rotated) [kv_rank + rope_size, hidden]
//   kv_a_norm [1, kv_rank]   wk_b [heads * kv_rank, nope_size]   wv_b [heads * value_size, kv_rank]
//   wo [hidden, heads * value_size]   [attn_out_norm [1, hidden]]
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

struct LatentAttention {
  NormWeights norm, output_norm, query_norm, latent_norm;
  Matrix query_down, query, latent, output;
  std::vector<Matrix> key, value;  // of each head

  // `prefix`: of the layer's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const BlockConfig& block, const std::string& prefix,
                 Slots& slots);
  // `layer` counts from the shard's first. Ends with the sum over all ranks in `partial`.
  void compile(const ShardConfig& config, size_t layer, Program& program) const;

 private:
  // Queries, and the latent with the key behind it.
  void compile_products(const ShardConfig& config, size_t layer, Program& program) const;
};

}  // namespace hearth
