// Rotary position embedding (Su et al.: RoFormer, 2021), of pairs (i, i + head_size / 2).
#include <cmath>

#include "shard/pass.h"

namespace hearth {

Access RopeAngles::access() const {
  return {.reads = {}, .writes = {BufferId::cos, BufferId::sin}, .division = Division::rows};
}

void RopeAngles::run(Pass& pass, size_t thread) const {
  const Activations& cos = pass.buffers[BufferId::cos];
  const Activations& sin = pass.buffers[BufferId::sin];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    const auto position = static_cast<float>(pass.batch.rows()[r].position);
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const float angle = position * frequencies[i];
      cos.row(r)[i] = std::cos(angle);
      sin.row(r)[i] = std::sin(angle);
    }
  }
}

Access RopeAndStore::access() const {
  return {
      .reads = {BufferId::cos, BufferId::sin, BufferId::queries, BufferId::keys, BufferId::values},
      .writes = {BufferId::queries, BufferId::keys, BufferId::kv_cache},
      .division = Division::other};
}

// Divided by (row, head): the query heads of a row, then its KV heads.
void RopeAndStore::run(Pass& pass, size_t thread) const {
  const size_t size = shape.head_size, half = size / 2, page_size = pass.kv.shape().page_size;
  const size_t of_row = shape.heads + shape.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  const auto [begin, end] = pass.part(pass.batch.rows().size() * of_row, thread);
  for (size_t item = begin; item < end; ++item) {
    const size_t r = item / of_row, head = item % of_row;
    const float* cos = pass.buffers[BufferId::cos].row(r);
    const float* sin = pass.buffers[BufferId::sin].row(r);
    if (head < shape.heads) {
      float* query = pass.buffers[BufferId::queries].row(r) + head * size;
      pass.kernels.rope(query, cos, sin, half);
      for (size_t i = 0; i < size; ++i) query[i] *= scale;
      continue;
    }
    const size_t kv_head = head - shape.heads;
    float* key = pass.buffers[BufferId::keys].row(r) + kv_head * size;
    const float* value = pass.buffers[BufferId::values].row(r) + kv_head * size;
    pass.kernels.rope(key, cos, sin, half);
    const Batch::Row& row = pass.batch.rows()[r];
    const uint32_t page = row.sequence->pages[row.position / page_size];
    const size_t slot = row.position % page_size;
    pass.kv.store_key(pass.kernels, pass.kv.keys(page, layer, kv_head), slot, key);
    pass.kv.store_value(pass.kernels, pass.kv.values(page, layer, kv_head), slot, value);
  }
}

}  // namespace hearth
