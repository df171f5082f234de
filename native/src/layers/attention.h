// Grouped-query attention with rotary positions over a paged KV cache.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/shard.h"
#include "layers/program.h"
#include "layers/slots.h"
#include "shard/batch.h"

namespace hearth {

struct Attention {
  std::vector<float> norm;
  Matrix query, key, value, output;

  // `prefix`: of the block's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots);
  // `layer` counts from the shard's first. Ends with this rank's part in `partial`.
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

AttentionShape attention_shape(const ShardConfig& config);

}  // namespace hearth
