#include "layers/latent_attention.h"

#include <algorithm>
#include <utility>

#include "layers/attention.h"
#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

size_t query_size(const LatentAttentionConfig& config) {
  return config.nope_size + config.rope_size;
}

size_t key_size(const LatentAttentionConfig& config) { return config.kv_rank + config.rope_size; }

}  // namespace

// All heads share one KV head, of the latent.
AttentionShape attention_shape(const LatentAttentionConfig& config) {
  return {config.heads.size(), 1, key_size(config), config.kv_rank};
}

void LatentAttention::add_slots(const ShardConfig& config, const BlockConfig& block,
                                const std::string& prefix, Slots& slots) {
  const auto& attention = std::get<LatentAttentionConfig>(block.mixer);
  const size_t hidden = config.hidden_size, heads = attention.heads.size();
  const size_t kv_rank = attention.kv_rank, query_rank = attention.query_rank;
  if (block.input_norms) norm.add_slots(config.norm, prefix + "attn_norm", hidden, slots);
  if (query_rank > 0) {
    slots.add(prefix + "wq_a", query_rank, hidden, query_down);
    slots.add(prefix + "q_a_norm", query_rank, query_norm.weight);
  }
  slots.add(prefix + "wq", heads * query_size(attention), query_rank > 0 ? query_rank : hidden,
            query);
  slots.add(prefix + "wkv_a", key_size(attention), hidden, latent);
  slots.add(prefix + "kv_a_norm", kv_rank, latent_norm.weight);
  for (std::vector<Matrix>* each : {&key, &value}) each->resize(heads);
  slots.add(prefix + "wk_b", kv_rank, attention.nope_size, key);
  slots.add(prefix + "wv_b", attention.value_size, kv_rank, value);
  slots.add(prefix + "wo", hidden, heads * attention.value_size, output);
  if (block.output_norms)
    output_norm.add_slots(config.norm, prefix + "attn_out_norm", hidden, slots);
}

void LatentAttention::compile_products(const ShardConfig& config, size_t layer,
                                       Program& program) const {
  const BlockConfig& block = config.kind_of(layer);
  const auto& attention = std::get<LatentAttentionConfig>(block.mixer);
  const size_t queries = attention.heads.size() * query_size(attention);
  const size_t query_rank = attention.query_rank, keys = key_size(attention);
  const Matrix& first = query_rank > 0 ? query_down : query;
  const bool quantize = is_quantized(first.type()) || is_quantized(latent.type());
  program.size_buffer(BufferId::normed, config.hidden_size, quantize);
  program.size_buffer(BufferId::full_queries, queries);
  program.size_buffer(BufferId::keys, keys);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = layer > 0 && leaves_partial(config, config.kind_of(layer - 1)),
                   .quantize = quantize});
  const Products::Product latent_product = {&latent, BufferId::keys, keys};
  const Products::Product query_product = {&query, BufferId::full_queries, queries};
  if (query_rank == 0) {
    program.add(Products{.input = BufferId::normed, .products = {query_product, latent_product}});
    return;
  }
  const bool quantize_latent = is_quantized(query.type());
  program.size_buffer(BufferId::query_latent, query_rank, quantize_latent);
  program.add(
      Products{.input = BufferId::normed,
               .products = {{&query_down, BufferId::query_latent, query_rank}, latent_product}});
  program.add(RowNorm{.buffer = BufferId::query_latent,
                      .weights = &query_norm,
                      .epsilon = attention.norm_epsilon,
                      .quantize = quantize_latent});
  program.add(Products{.input = BufferId::query_latent, .products = {query_product}});
}

void LatentAttention::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const BlockConfig& block = config.kind_of(layer);
  const auto& attention = std::get<LatentAttentionConfig>(block.mixer);
  const AttentionShape shape = attention_shape(attention);
  const size_t hidden = config.hidden_size, heads = shape.heads;
  const size_t mixed = heads * attention.value_size;
  const bool quantize_queries = is_quantized(key.front().type());
  const bool quantize_latent = is_quantized(value.front().type());
  const bool quantize_mixed = is_quantized(output.type());
  compile_products(config, layer, program);
  program.size_buffer(BufferId::head_queries, heads * attention.nope_size, quantize_queries);
  program.size_buffer(BufferId::queries, heads * shape.key_size);
  program.size_buffer(BufferId::mixed, heads * shape.value_size, quantize_latent);
  program.size_buffer(BufferId::head_mixed, mixed, quantize_mixed);
  program.size_buffer(BufferId::partial, hidden);
  const RopePairs pairs = rope_pairs(config, attention.rope);
  program.add(LatentStore{.config = attention,
                          .layer = layer,
                          .first_pair = pairs.first,
                          .pairs = pairs.count,
                          .latent_norm = &latent_norm,
                          .epsilon = attention.norm_epsilon,
                          .quantize = quantize_queries});
  program.add(HeadProducts{.input = BufferId::head_queries,
                           .weights = &key,
                           .output = BufferId::queries,
                           .stride = shape.key_size});
  program.add(Attend{.shape = shape,
                     .kind = config.kind_of_layer[layer],
                     .layer = layer,
                     .window = 0,
                     .softcap = 0.0f,
                     .sinks = nullptr,
                     .gate = false,
                     .latent = true,
                     .quantize = quantize_latent});
  program.add(HeadProducts{.input = BufferId::mixed,
                           .weights = &value,
                           .output = BufferId::head_mixed,
                           .stride = attention.value_size});
  if (quantize_mixed) program.add(Quantize{.buffer = BufferId::head_mixed, .columns = mixed});
  program.add(
      Products{.input = BufferId::head_mixed, .products = {{&output, BufferId::partial, hidden}}});
  program.add(AllReduce{.columns = hidden});
  add_finish_partial(config, block, output_norm, program);
}

Access LatentStore::access() const {
  return {.reads = {BufferId::cos, BufferId::sin, BufferId::full_queries, BufferId::keys},
          .writes = {BufferId::head_queries, BufferId::queries, BufferId::keys,
                     BufferId::full_queries, BufferId::kv_cache},
          .division = Division::other};
}

// Divided by (row, head): the query heads of a row, then its key.
void LatentStore::run(Pass& pass, size_t thread) const {
  const size_t nope = config.nope_size, rotated = config.rope_size, rank = config.kv_rank;
  const size_t heads = config.heads.size(), rows = pass.batch.rows().size();
  const size_t page_size = pass.kv.shape().page_size;
  const auto buffer = [&](BufferId id, size_t columns) {
    return pass.buffers[id].of_width(columns);
  };
  const Activations full = buffer(BufferId::full_queries, heads * query_size(config));
  const Activations parts = buffer(BufferId::head_queries, nope);
  const Activations queries = buffer(BufferId::queries, heads * key_size(config));
  const Activations keys = buffer(BufferId::keys, key_size(config));
  const auto [begin, end] = pass.part(rows * (heads + 1), thread);
  for (size_t item = begin; item < end; ++item) {
    const size_t r = item / (heads + 1), head = item % (heads + 1);
    const auto rotate = [&](float* x) {
      if (pairs == 0) return;
      pass.kernels.rope(x, pass.buffers[BufferId::cos].row(r) + first_pair,
                        pass.buffers[BufferId::sin].row(r) + first_pair, pairs);
    };
    if (head < heads) {
      float* query = full.row(r) + head * query_size(config);
      rotate(query + nope);
      for (size_t i = 0; i < query_size(config); ++i) query[i] *= config.scale;
      const size_t part = head * rows + r;
      std::copy_n(query, nope, parts.row(part));
      if (quantize) quantize_columns(pass.kernels, parts, part, 0, nope);
      std::copy_n(query + nope, rotated, queries.row(r) + head * key_size(config) + rank);
      continue;
    }
    float* key = keys.row(r);
    pass.kernels.rms_norm(key, latent_norm->weight.data(), rank, epsilon, key);
    rotate(key + rank);
    const Batch::Row& row = pass.batch.rows()[r];
    const uint32_t page = row.sequence->pages[row.position / page_size];
    pass.kv.store_key(pass.kernels, pass.kv.keys(page, layer, 0), row.position % page_size, key,
                      key_size(config));
  }
}

Access HeadProducts::access() const {
  BufferSet reads = {input};
  // Columns between those that it writes stay.
  if (stride > weights->front().rows()) reads = reads | BufferSet{output};
  return {.reads = reads, .writes = {output, BufferId::scratch}, .division = Division::stealing};
}

void HeadProducts::run(Pass& pass, size_t thread) const {
  const size_t rows = pass.batch.rows().size(), heads = weights->size();
  const size_t width = weights->front().columns(), results = weights->front().rows();
  const size_t groups = (results + kGroupRows - 1) / kGroupRows;
  void* scratch = pass.buffers[BufferId::scratch].row(thread);
  pass.queue.begin_phase(thread);
  while (true) {
    const auto [begin, end] = pass.queue.take(thread, heads * groups, unit_groups(rows));
    if (begin == end) return;
    for (size_t head = begin / groups; head * groups < end; ++head) {
      const size_t at = head * groups;
      const size_t first = std::max(begin, at) - at, last = std::min(end, at + groups) - at;
      multiply_groups(pass.kernels, pass.buffers[input].from_row(head * rows, width), rows,
                      (*weights)[head], results, first, last,
                      pass.buffers[output].x + head * stride, scratch, heads * stride);
    }
  }
}

Access RowNorm::access() const {
  return {.reads = {buffer}, .writes = {buffer}, .division = Division::rows};
}

void RowNorm::run(Pass& pass, size_t thread) const {
  const Activations each = pass.buffers[buffer].of_width(weights->weight.size());
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    float* row = each.row(r);
    pass.kernels.rms_norm(row, weights->weight.data(), each.columns, epsilon, row);
    if (quantize) quantize_columns(pass.kernels, each, r, 0, each.columns);
  }
}

}  // namespace hearth
