#include "layers/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

// Queries that pass over a page together: with it and their sums they should fit a first-level
// cache.
constexpr size_t kTileQueries = 64;
// Up to so many read f16 keys and values directly: converting a page to f32 costs about as much as
// it saves them.
constexpr size_t kDirectQueries = 12;

// Queries that pass over a sequence's pages together: of a range of rows, and of heads that share a
// KV head.
struct QueryTile {
  RowRange rows;
  size_t kv_head;
  size_t head, heads;

  size_t queries() const { return rows.count * heads; }
};

// Copies the tile's queries to its scratch memory and prepares the running softmax.
AttendArgs begin_tile(const Pass& pass, const Attend& operation, const QueryTile& tile,
                      float*& scratch) {
  const AttentionShape& shape = operation.shape;
  const size_t key_size = shape.key_size, queries = tile.queries(), stride = pass.kv.stride();
  const auto take = [&](size_t count) { return std::exchange(scratch, scratch + count); };
  float* q = take(queries * key_size);
  const AttendArgs args = {
      .q = q,
      .keys = nullptr,
      .values = nullptr,
      .queries = queries,
      .key_size = key_size,
      .value_size = shape.value_size,
      .slots = 0,
      .stride = stride,
      .scratch = take(queries * stride),
      .shrink = take(queries),
      .largest = take(queries),
      .sum = take(queries),
      .out = take(queries * shape.value_size),
      .softcap = operation.softcap,
  };
  const Activations all = pass.buffers[BufferId::queries].of_width(shape.heads * key_size);
  const size_t of_row = tile.heads * key_size;
  for (size_t r = 0; r < tile.rows.count; ++r)
    std::copy_n(all.row(tile.rows.first + r) + tile.head * key_size, of_row, q + r * of_row);
  std::fill_n(args.largest, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(args.sum, queries, 0.0f);
  std::fill_n(args.out, queries * shape.value_size, 0.0f);
  return args;
}

// First position that a query at `position` sees.
size_t first_visible(size_t window, size_t position) {
  return window == 0 || position < window ? 0 : position + 1 - window;
}

// The page whose first position is `page_start`; `first`: the position of the tile's first row.
// element_bytes: of keys and values.
void attend_page(void (*attend)(const AttendArgs&), const AttendArgs& args, const QueryTile& tile,
                 size_t page_start, size_t page_size, size_t first, size_t window,
                 size_t element_bytes) {
  const size_t last = first + tile.rows.count - 1;
  if (page_start + page_size <= first + 1 && first_visible(window, last) <= page_start) {
    AttendArgs all = args;
    all.slots = page_size;
    return attend(all);
  }
  // Mask: here each row sees its own slots [low, high), from none to all.
  for (size_t r = page_start > first ? page_start - first : 0; r < tile.rows.count; ++r) {
    const size_t visible = first_visible(window, first + r);
    const size_t low = visible > page_start ? visible - page_start : 0;
    const size_t high = std::min(page_size, first + r + 1 - page_start);
    if (low >= high) continue;
    AttendArgs row = args;
    const size_t query = r * tile.heads;
    row.queries = tile.heads;
    row.slots = high - low;
    // Of a slot further, keys lie one element on, and values a row. Behind the last key are the
    // values, so that the whole vectors of keys that are read stay within the page.
    row.keys = static_cast<const uint8_t*>(args.keys) + low * element_bytes;
    row.values = static_cast<const uint8_t*>(args.values) + low * args.value_size * element_bytes;
    row.q += query * args.key_size;
    row.largest += query;
    row.sum += query;
    row.out += query * args.value_size;
    attend(row);
  }
}

// A score of its own for each head, whose value is zero.
void add_sink(float sink, const AttendArgs& args, size_t query) {
  const float largest = std::max(args.largest[query], sink);
  const float shrink = std::exp(args.largest[query] - largest);
  args.sum[query] = args.sum[query] * shrink + std::exp(sink - largest);
  for (size_t i = 0; i < args.value_size; ++i) args.out[query * args.value_size + i] *= shrink;
}

// mixed = out / sum
void end_tile(const Pass& pass, const Attend& operation, const AttendArgs& args,
              const QueryTile& tile) {
  const size_t size = args.value_size, columns = operation.shape.heads * size;
  const Activations mixed = pass.buffers[BufferId::mixed].of_width(columns);
  for (size_t r = 0; r < tile.rows.count; ++r) {
    const size_t row = tile.rows.first + r;
    float* out = mixed.row(row) + tile.head * size;
    for (size_t h = 0; h < tile.heads; ++h) {
      const size_t query = r * tile.heads + h;
      if (operation.sinks != nullptr) add_sink((*operation.sinks)[tile.head + h], args, query);
      const float inverse = 1.0f / args.sum[query];
      float* of_head = out + h * size;
      const size_t by_head = (tile.head + h) * pass.batch.rows().size() + row;
      if (operation.latent) of_head = mixed.x + by_head * size;
      for (size_t i = 0; i < size; ++i) of_head[i] = args.out[query * size + i] * inverse;
      if (operation.latent && operation.quantize)
        quantize_columns(pass.kernels, mixed.of_width(size), by_head, 0, size);
    }
    if (operation.latent) continue;
    if (operation.gate) {
      const Activations all = pass.buffers[BufferId::mixer_gate].of_width(columns);
      const float* gates = all.row(row) + tile.head * size;
      for (size_t i = 0; i < tile.heads * size; ++i) out[i] /= 1.0f + std::exp(-gates[i]);
    }
    if (operation.quantize) {
      quantize_columns(pass.kernels, mixed, row, tile.head * size, (tile.head + tile.heads) * size);
    }
  }
}

// values[s][i] = keys[i][s]
void transpose_keys(const float* keys, size_t stride, size_t slots, size_t size, float* values) {
  constexpr size_t kSide = 16;  // of a square, so that both sides of it stay in the cache
  for (size_t s = 0; s < slots; s += kSide) {
    const size_t last = std::min(slots, s + kSide);
    for (size_t i = 0; i < size; i += kSide) {
      const size_t end = std::min(size, i + kSide);
      for (size_t slot = s; slot < last; ++slot) {
        for (size_t e = i; e < end; ++e) values[slot * size + e] = keys[e * stride + slot];
      }
    }
  }
}

void attend_tile(Pass& pass, const Attend& operation, const QueryTile& tile, size_t thread) {
  const KvShape& kv = pass.kv.shape();
  const size_t page_size = kv.page_size;
  float* scratch = pass.buffers[BufferId::scratch].row(thread);
  AttendArgs args = begin_tile(pass, operation, tile, scratch);
  float* keys = std::exchange(scratch, scratch + args.key_size * args.stride);
  float* values = scratch;
  // Few queries read f16 directly; for more, a page is converted once.
  const bool widen =
      kv.type == KvType::q80 ||
      (kv.type == KvType::f16 && (operation.latent || args.queries > kDirectQueries));
  const auto attend =
      kv.type == KvType::f16 && !widen ? pass.kernels.attend_f16 : pass.kernels.attend_f32;
  const Batch::Row& row = pass.batch.rows()[tile.rows.first];
  const auto& pages = row.sequence->pages;
  const size_t first = row.position, end = first + tile.rows.count;
  const size_t first_page = first_visible(operation.window, first) / page_size;
  const size_t element_bytes = attend == pass.kernels.attend_f16 ? 2 : 4;
  for (size_t p = first_page, at = p * page_size; at < end; ++p, at += page_size) {
    args.keys = pass.kv.keys(pages[p], operation.layer, tile.kv_head);
    args.values = pass.kv.values(pages[p], operation.layer, tile.kv_head);
    const size_t slots = std::min(page_size, end - at);
    args.next_bytes = at + page_size < end ? pass.kv.head_bytes(operation.layer) : 0;
    if (args.next_bytes > 0) args.next = pass.kv.keys(pages[p + 1], operation.layer, tile.kv_head);
    if (widen) {
      pass.kv.widen_keys(pass.kernels, args.keys, args.key_size, keys);
      args.keys = keys;
    }
    if (operation.latent) {
      transpose_keys(static_cast<const float*>(args.keys), args.stride, slots, args.value_size,
                     values);
      args.values = values;
    } else if (widen) {
      pass.kv.widen_values(pass.kernels, args.values, slots, args.value_size, values);
      args.values = values;
    }
    attend_page(attend, args, tile, at, page_size, first, operation.window, element_bytes);
  }
  end_tile(pass, operation, args, tile);
}

// KV heads of this rank whose first query head it has too: each is one rank's alone.
Span counted_kv_heads(const AttentionConfig& attention) {
  const size_t group = attention.row_norm->heads / attention.row_norm->kv_heads;
  const auto is_counted = [&](size_t kv_head) {
    return attention.heads.begin <= kv_head * group && kv_head * group < attention.heads.end;
  };
  Span counted = attention.kv_heads;
  while (counted.size() > 0 && !is_counted(counted.begin)) ++counted.begin;
  while (counted.size() > 0 && !is_counted(counted.end - 1)) --counted.end;
  return counted;
}

}  // namespace

AttentionShape attention_shape(const AttentionConfig& config) {
  return {config.heads.size(), config.kv_heads.size(), config.key_size, config.value_size};
}

std::optional<AttentionShape> attention_shape(const MixerConfig& mixer) {
  if (const auto* attention = std::get_if<AttentionConfig>(&mixer))
    return attention_shape(*attention);
  if (const auto* attention = std::get_if<LatentAttentionConfig>(&mixer))
    return attention_shape(*attention);
  return std::nullopt;
}

RopePairs rope_pairs(const ShardConfig& config, const std::optional<size_t>& rope) {
  if (!rope) return {};
  RopePairs pairs;
  for (size_t i = 0; i < *rope; ++i) pairs.first += config.ropes[i].frequencies.size();
  pairs.count = config.ropes[*rope].frequencies.size();
  return pairs;
}

void Attention::add_slots(const ShardConfig& config, const BlockConfig& block,
                          const std::string& prefix, Slots& slots) {
  const auto& attention = std::get<AttentionConfig>(block.mixer);
  const AttentionShape shape = attention_shape(attention);
  const size_t hidden = config.hidden_size;
  const size_t q = shape.heads * shape.key_size, mixed = shape.heads * shape.value_size;
  const size_t k = shape.kv_heads * shape.key_size, v = shape.kv_heads * shape.value_size;
  if (block.input_norms) norm.add_slots(config.norm, prefix + "attn_norm", hidden, slots);
  const bool keys = !attention.kv_layer, values = keys && !attention.keys_as_values;
  slots.add(prefix + "wq", q, hidden, query);
  if (keys) slots.add(prefix + "wk", k, hidden, key);
  if (values) slots.add(prefix + "wv", v, hidden, value);
  slots.add(prefix + "wo", hidden, mixed, output);
  if (attention.bias) {
    slots.add(prefix + "bq", q, query_bias);
    if (keys) slots.add(prefix + "bk", k, key_bias);
    if (values) slots.add(prefix + "bv", v, value_bias);
    if (attention.gate) slots.add(prefix + "bg", mixed, gate_bias);
  }
  if (attention.value_norm) value_norm.assign(shape.value_size, 1.0f);
  if (attention.output_bias) slots.add(prefix + "bo", hidden, output_bias);
  if (attention.head_norm || attention.row_norm) {
    slots.add(prefix + "q_norm", attention.row_norm ? q : shape.key_size, query_norm.weight);
    if (keys)
      slots.add(prefix + "k_norm", attention.row_norm ? k : shape.key_size, key_norm.weight);
  }
  if (attention.sinks) slots.add(prefix + "sinks", shape.heads, sinks);
  if (attention.gate) slots.add(prefix + "wg", mixed, hidden, gate);
  if (block.output_norms)
    output_norm.add_slots(config.norm, prefix + "attn_out_norm", hidden, slots);
}

void Attention::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const BlockConfig& block = config.kind_of(layer);
  const auto& attention = std::get<AttentionConfig>(block.mixer);
  const AttentionShape shape = attention_shape(attention);
  const size_t hidden = config.hidden_size;
  const size_t q = shape.heads * shape.key_size, mixed = shape.heads * shape.value_size;
  const size_t k = shape.kv_heads * shape.key_size, v = shape.kv_heads * shape.value_size;
  const auto bias = [&](const std::vector<float>& each) {
    return attention.bias ? &each : nullptr;
  };
  const bool keys = !attention.kv_layer, values = keys && !attention.keys_as_values;
  std::vector<Products::Product> products = {{&query, BufferId::queries, q, bias(query_bias)}};
  if (keys) products.push_back({&key, BufferId::keys, k, bias(key_bias)});
  if (values) products.push_back({&value, BufferId::values, v, bias(value_bias)});
  if (attention.gate) products.push_back({&gate, BufferId::mixer_gate, mixed, bias(gate_bias)});
  bool quantize_normed = false;
  for (const auto& each : products)
    quantize_normed = quantize_normed || is_quantized(each.weight->type());
  const bool quantize_mixed = is_quantized(output.type());
  // Else blocks straddle heads, and only whole rows can be quantized.
  const bool whole_blocks = shape.value_size % kBlock == 0;
  program.size_buffer(BufferId::normed, hidden, quantize_normed);
  program.size_buffer(BufferId::queries, q);
  if (keys) program.size_buffer(BufferId::keys, k);
  if (values) program.size_buffer(BufferId::values, v);
  if (attention.gate) program.size_buffer(BufferId::mixer_gate, mixed);
  program.size_buffer(BufferId::mixed, mixed, quantize_mixed);
  program.size_buffer(BufferId::partial, hidden);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = layer > 0 && leaves_partial(config, config.kind_of(layer - 1)),
                   .quantize = quantize_normed});
  program.add(Products{.input = BufferId::normed, .products = std::move(products)});
  if (attention.row_norm) {
    program.size_buffer(BufferId::row_squares, 2);
    const Span counted = counted_kv_heads(attention);
    program.add(SumSquares{.shape = shape,
                           .first_counted = counted.begin - attention.kv_heads.begin,
                           .counted = counted.size()});
    program.add(AllReduce{.buffer = BufferId::row_squares, .columns = 2, .exact = true});
  }
  const RopePairs pairs = rope_pairs(config, attention.rope);
  const bool normed = attention.head_norm || attention.row_norm;
  program.add(RopeAndStore{.shape = shape,
                           .layer = layer,
                           .scale = attention.scale,
                           .temperature = attention.temperature,
                           .first_pair = pairs.first,
                           .pairs = pairs.count,
                           .query_norm = normed ? &query_norm : nullptr,
                           .key_norm = normed ? &key_norm : nullptr,
                           .row_norm = attention.row_norm,
                           .epsilon = config.norm.epsilon,
                           .value_norm = attention.value_norm ? &value_norm : nullptr,
                           .keys_as_values = attention.keys_as_values,
                           .store = keys});
  program.add(Attend{.shape = shape,
                     .kind = config.kind_of_layer[layer],
                     .layer = keys ? layer : *attention.kv_layer - config.layers.begin,
                     .window = attention.window,
                     .softcap = attention.softcap,
                     .sinks = attention.sinks ? &sinks : nullptr,
                     .gate = attention.gate,
                     .latent = false,
                     .quantize = quantize_mixed && whole_blocks});
  if (quantize_mixed && !whole_blocks)
    program.add(Quantize{.buffer = BufferId::mixed, .columns = mixed});
  program.add(Products{.input = BufferId::mixed,
                       .products = {{&output, BufferId::partial, hidden,
                                     attention.output_bias ? &output_bias : nullptr}}});
  program.add(AllReduce{.columns = hidden});
  add_finish_partial(config, block, output_norm, program);
}

std::vector<RowRange> cut_rows(const Batch& batch, const AttentionShape& shape, size_t threads) {
  const std::vector<Batch::Row>& rows = batch.rows();
  // At least four items for each thread, where there are so many rows.
  const size_t most =
      std::clamp<size_t>(rows.size() * shape.kv_heads / (4 * threads), 1,
                         std::max<size_t>(kTileQueries / shape.queries_per_kv_head(), 1));
  std::vector<RowRange> ranges;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (ranges.empty() || ranges.back().count == most ||
        rows[row].sequence != rows[row - 1].sequence) {
      ranges.push_back({row, 0});
    }
    ++ranges.back().count;
  }
  return ranges;
}

size_t attention_scratch(const std::vector<RowRange>& ranges, const AttentionShape& shape,
                         size_t key_stride, size_t page_size) {
  size_t longest = 0;
  for (const RowRange& range : ranges) longest = std::max(longest, range.count);
  const size_t queries = longest * shape.queries_per_kv_head();
  // See begin_tile, and attend_tile for the page that is converted.
  return queries * (shape.key_size + shape.value_size + key_stride + 3) +
         key_stride * shape.key_size + page_size * shape.value_size;
}

Access SumSquares::access() const {
  return {.reads = {BufferId::queries, BufferId::keys},
          .writes = {BufferId::row_squares},
          .division = Division::rows};
}

void SumSquares::run(Pass& pass, size_t thread) const {
  const size_t key_size = shape.key_size;
  const Activations queries = pass.buffers[BufferId::queries].of_width(shape.heads * key_size);
  const Activations keys = pass.buffers[BufferId::keys].of_width(shape.kv_heads * key_size);
  const Activations sums = pass.buffers[BufferId::row_squares].of_width(2);
  const auto squares = [](const float* x, size_t size) {
    double sum = 0.0;
    for (size_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
    return static_cast<float>(sum);
  };
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    sums.row(r)[0] = squares(queries.row(r), queries.columns);
    sums.row(r)[1] = squares(keys.row(r) + first_counted * key_size, counted * key_size);
  }
}

Access Attend::access() const {
  BufferSet reads = {BufferId::queries, BufferId::kv_cache};
  if (gate) reads = reads | BufferSet{BufferId::mixer_gate};
  return {
      .reads = reads, .writes = {BufferId::mixed, BufferId::scratch}, .division = Division::other};
}

// Items go to the threads in turn, KV head by KV head: later rows have more positions to see.
void Attend::run(Pass& pass, size_t thread) const {
  const std::vector<RowRange>& row_ranges = pass.row_ranges[kind];
  const size_t threads = pass.pool.size(), ranges = row_ranges.size();
  const size_t per_kv_head = shape.queries_per_kv_head();
  // With few rows the query heads of one KV head are divided too, so that no thread is idle. Each
  // part reads all keys and values, so not where the threads have equally many items anyway.
  const auto is_idle = [&](size_t items) {
    return items < threads || (items < 4 * threads && items % threads != 0);
  };
  size_t divisions = 1;
  while (divisions < per_kv_head && is_idle(ranges * shape.kv_heads * divisions)) divisions *= 2;
  divisions = std::min(divisions, per_kv_head);
  const size_t items = shape.kv_heads * ranges * divisions;
  for (size_t item = thread; item < items; item += threads) {
    const size_t kv_head = item / (ranges * divisions);
    const auto [first, last] = split(per_kv_head, divisions, item % divisions);
    const QueryTile tile = {.rows = row_ranges[item / divisions % ranges],
                            .kv_head = kv_head,
                            .head = kv_head * per_kv_head + first,
                            .heads = last - first};
    attend_tile(pass, *this, tile, thread);
  }
}

}  // namespace hearth
