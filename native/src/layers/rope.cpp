// Rotary position embedding (Su et al.: RoFormer, 2021), of pairs (i, i + pairs).
#include <algorithm>
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
    float *cosines = cos.row(r), *sines = sin.row(r);
    for (const RopeConfig& rope : ropes) {
      for (float frequency : rope.frequencies) {
        // In f32, as in transformers: the cosines agree to 6e-8 at any position. A product in
        // double would be closer to exact, but 1e-3 from transformers at 32,768 and 4e-3 at
        // 131,072.
        const float angle = position * frequency;
        *cosines++ = rope.magnitude * std::cos(angle);
        *sines++ = rope.magnitude * std::sin(angle);
      }
    }
  }
}

Access RopeAndStore::access() const {
  BufferSet reads = {BufferId::cos, BufferId::sin, BufferId::queries};
  BufferSet writes = {BufferId::queries};
  if (store) {
    reads = reads | BufferSet{BufferId::keys};
    writes = writes | BufferSet{BufferId::keys, BufferId::kv_cache};
    if (!keys_as_values) reads = reads | BufferSet{BufferId::values};
  }
  if (row_norm) reads = reads | BufferSet{BufferId::row_squares};
  return {.reads = reads, .writes = writes, .division = Division::other};
}

// Divided by (row, head): the query heads of a row, then its KV heads.
void RopeAndStore::run(Pass& pass, size_t thread) const {
  const size_t key_size = shape.key_size, value_size = shape.value_size;
  const size_t page_size = pass.kv.shape().page_size;
  const size_t of_row = shape.heads + (store ? shape.kv_heads : 0);
  const auto buffer = [&](BufferId id, size_t columns) {
    return pass.buffers[id].of_width(columns);
  };
  const Activations queries = buffer(BufferId::queries, shape.heads * key_size);
  const Activations keys = buffer(BufferId::keys, shape.kv_heads * key_size);
  const Activations values = buffer(BufferId::values, shape.kv_heads * value_size);
  const auto [begin, end] = pass.part(pass.batch.rows().size() * of_row, thread);
  for (size_t item = begin; item < end; ++item) {
    const size_t r = item / of_row, head = item % of_row;
    // at: of the head among those that `x` lies with.
    const auto prepare = [&](float* x, const NormWeights* norm, size_t at) {
      if (row_norm) {
        const bool query = norm == query_norm;
        const float squares = pass.buffers[BufferId::row_squares].of_width(2).row(r)[query ? 0 : 1];
        const auto width =
            static_cast<float>((query ? row_norm->heads : row_norm->kv_heads) * key_size);
        const float factor = 1.0f / std::sqrt(squares / width + epsilon);
        const float* weight = norm->weight.data() + at * key_size;
        for (size_t i = 0; i < key_size; ++i) x[i] *= factor * weight[i];
      } else if (norm != nullptr) {
        pass.kernels.rms_norm(x, norm->weight.data(), key_size, epsilon, x);
      }
      if (pairs == 0) return;
      pass.kernels.rope(x, pass.buffers[BufferId::cos].row(r) + first_pair,
                        pass.buffers[BufferId::sin].row(r) + first_pair, pairs);
    };
    if (head < shape.heads) {
      float* query = queries.row(r) + head * key_size;
      prepare(query, query_norm, head);
      float factor = scale;
      if (temperature) {
        const auto position = static_cast<float>(pass.batch.rows()[r].position);
        factor *=
            1.0f + temperature->slope * std::log1p(std::floor(position / temperature->length));
      }
      for (size_t i = 0; i < key_size; ++i) query[i] *= factor;
      continue;
    }
    const size_t kv_head = head - shape.heads;
    float* key = keys.row(r) + kv_head * key_size;
    const float* value = keys_as_values ? key : values.row(r) + kv_head * value_size;
    float own[kMostHeadSize];  // of a value that differs from the products
    if (value_norm != nullptr) {
      pass.kernels.rms_norm(value, value_norm->data(), value_size, epsilon, own);
      value = own;
    } else if (keys_as_values) {
      std::copy_n(value, value_size, own);
      value = own;
    }
    prepare(key, key_norm, kv_head);
    const Batch::Row& row = pass.batch.rows()[r];
    const uint32_t page = row.sequence->pages[row.position / page_size];
    const size_t slot = row.position % page_size;
    pass.kv.store_key(pass.kernels, pass.kv.keys(page, layer, kv_head), slot, key, key_size);
    pass.kv.store_value(pass.kernels, pass.kv.values(page, layer, kv_head), slot, value,
                        value_size);
  }
}

}  // namespace hearth
