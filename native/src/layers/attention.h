// Grouped-query attention over a paged KV cache.
//
// Slices of a layer, with shapes [rows, columns]; what is in brackets depends on the config:
//   attn_norm [1, hidden]              wq [heads * key_size, hidden]
//   wk [kv_heads * key_size, hidden]   wv [kv_heads * value_size, hidden]
//   wo [hidden, heads * value_size]    [bq, bk, bv: [1, rows of wq, wk, wv]]   [bo [1, hidden]]
//   [q_norm, k_norm [1, key_size], or of a whole row [1, rows of wq, wk]]   [sinks [1, heads]]
//   [wg (gate) [heads * value_size, hidden]]   [attn_out_norm [1, hidden]]
// Where values are the keys, wv and bv are not there; where keys and values are another layer's,
// none of theirs.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/norm.h"
#include "layers/program.h"
#include "layers/slots.h"
#include "shard/batch.h"

namespace hearth {

struct Attention {
  NormWeights norm, output_norm, query_norm, key_norm;
  Matrix query, key, value, output, gate;
  std::vector<float> query_bias, key_bias, value_bias, gate_bias, output_bias, sinks;
  std::vector<float> value_norm;  // ones

  // `prefix`: of the layer's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const BlockConfig& block, const std::string& prefix,
                 Slots& slots);
  // `layer` counts from the shard's first. Ends with the sum over all ranks in `partial`.
  void compile(const ShardConfig& config, size_t layer, Program& program) const;
};

// Consecutive rows of one sequence, whose queries pass over its pages together.
struct RowRange {
  size_t first, count;
};

// Cuts a batch's rows into ranges: as long as a tile of queries may be, and short enough that all
// threads have work.
std::vector<RowRange> cut_rows(const Batch& batch, const AttentionShape& shape, size_t threads);

// Floats of scratch memory that Attend needs for each thread. key_stride: KvCache::stride.
size_t attention_scratch(const std::vector<RowRange>& ranges, const AttentionShape& shape,
                         size_t key_stride, size_t page_size);

AttentionShape attention_shape(const AttentionConfig& config);
AttentionShape attention_shape(const LatentAttentionConfig& config);  // latent_attention.cpp
// Of a mixer that attends to pages; no shape for others.
std::optional<AttentionShape> attention_shape(const MixerConfig& mixer);

// The angles of a rotary embedding within a row of those of all.
struct RopePairs {
  size_t first = 0, count = 0;
};
RopePairs rope_pairs(const ShardConfig& config, const std::optional<size_t>& rope);

}  // namespace hearth
