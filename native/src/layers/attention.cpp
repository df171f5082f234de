#include "layers/attention.h"

#include <algorithm>
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
AttendArgs begin_tile(const Pass& pass, const AttentionShape& shape, const QueryTile& tile,
                      float*& scratch) {
  const size_t size = shape.head_size, queries = tile.queries(), stride = pass.kv.stride();
  const auto take = [&](size_t count) { return std::exchange(scratch, scratch + count); };
  float* q = take(queries * size);
  const AttendArgs args = {
      .q = q,
      .keys = nullptr,
      .values = nullptr,
      .queries = queries,
      .head_size = size,
      .slots = 0,
      .stride = stride,
      .scratch = take(queries * stride),
      .shrink = take(queries),
      .largest = take(queries),
      .sum = take(queries),
      .out = take(queries * size),
  };
  const Activations& all = pass.buffers[BufferId::queries];
  const size_t of_row = tile.heads * size;
  for (size_t r = 0; r < tile.rows.count; ++r)
    std::copy_n(all.row(tile.rows.first + r) + tile.head * size, of_row, q + r * of_row);
  std::fill_n(args.largest, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(args.sum, queries, 0.0f);
  std::fill_n(args.out, queries * size, 0.0f);
  return args;
}

// The page whose first position is `page_start`; `first`: the position of the tile's first row.
void attend_page(void (*attend)(const AttendArgs&), const AttendArgs& args, const QueryTile& tile,
                 size_t page_start, size_t page_size, size_t first) {
  if (page_start + page_size <= first + 1) {
    AttendArgs all = args;
    all.slots = page_size;
    return attend(all);
  }
  // Causal mask: here each row sees its own number of slots, from none to all.
  for (size_t r = page_start > first ? page_start - first : 0; r < tile.rows.count; ++r) {
    AttendArgs row = args;
    const size_t query = r * tile.heads;
    row.queries = tile.heads;
    row.slots = std::min(page_size, first + r + 1 - page_start);
    row.q += query * args.head_size;
    row.largest += query;
    row.sum += query;
    row.out += query * args.head_size;
    attend(row);
  }
}

// mixed = out / sum
void end_tile(const Pass& pass, const AttendArgs& args, const QueryTile& tile, bool quantize) {
  const Activations& mixed = pass.buffers[BufferId::mixed];
  const size_t size = args.head_size;
  for (size_t r = 0; r < tile.rows.count; ++r) {
    const size_t row = tile.rows.first + r;
    float* out = mixed.row(row) + tile.head * size;
    for (size_t h = 0; h < tile.heads; ++h) {
      const size_t query = r * tile.heads + h;
      const float inverse = 1.0f / args.sum[query];
      for (size_t i = 0; i < size; ++i) out[h * size + i] = args.out[query * size + i] * inverse;
    }
    if (quantize) {
      quantize_columns(pass.kernels, mixed, row, tile.head * size, (tile.head + tile.heads) * size);
    }
  }
}

void attend_tile(Pass& pass, const Attend& operation, const QueryTile& tile, size_t thread) {
  const KvShape& kv = pass.kv.shape();
  const size_t page_size = kv.page_size;
  float* scratch = pass.buffers[BufferId::scratch].row(thread);
  AttendArgs args = begin_tile(pass, operation.shape, tile, scratch);
  float* keys = std::exchange(scratch, scratch + args.head_size * args.stride);
  float* values = scratch;
  // Few queries read f16 directly; for more, a page is converted once.
  const bool widen =
      kv.type == KvType::q80 || (kv.type == KvType::f16 && args.queries > kDirectQueries);
  const auto attend =
      kv.type == KvType::f16 && !widen ? pass.kernels.attend_f16 : pass.kernels.attend_f32;
  const Batch::Row& row = pass.batch.rows()[tile.rows.first];
  const auto& pages = row.sequence->pages;
  const size_t first = row.position, end = first + tile.rows.count;
  for (size_t p = 0, at = 0; at < end; ++p, at += page_size) {
    args.keys = pass.kv.keys(pages[p], operation.layer, tile.kv_head);
    args.values = pass.kv.values(pages[p], operation.layer, tile.kv_head);
    if (widen) {
      pass.kv.widen_keys(pass.kernels, args.keys, keys);
      pass.kv.widen_values(pass.kernels, args.values, std::min(page_size, end - at), values);
      args.keys = keys;
      args.values = values;
    }
    attend_page(attend, args, tile, at, page_size, first);
  }
  end_tile(pass, args, tile, operation.quantize);
}

}  // namespace

AttentionShape attention_shape(const ShardConfig& config) {
  return {config.heads.size(), config.kv_heads.size(), config.head_size};
}

void Attention::add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots) {
  const size_t hidden = config.hidden_size;
  const size_t q = config.heads.size() * config.head_size;
  const size_t kv = config.kv_heads.size() * config.head_size;
  slots.add(prefix + "attn_norm", hidden, norm);
  slots.add(prefix + "wq", q, hidden, query);
  slots.add(prefix + "wk", kv, hidden, key);
  slots.add(prefix + "wv", kv, hidden, value);
  slots.add(prefix + "wo", hidden, q, output);
}

void Attention::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const AttentionShape shape = attention_shape(config);
  const size_t hidden = config.hidden_size;
  const size_t q = shape.heads * shape.head_size, kv = shape.kv_heads * shape.head_size;
  const bool quantize_normed =
      is_quantized(query.type()) || is_quantized(key.type()) || is_quantized(value.type());
  const bool quantize_mixed = is_quantized(output.type());
  // Else blocks straddle heads, and only whole rows can be quantized.
  const bool whole_blocks = shape.head_size % kBlock == 0;
  program.size_buffer(BufferId::normed, hidden, quantize_normed);
  program.size_buffer(BufferId::queries, q);
  program.size_buffer(BufferId::keys, kv);
  program.size_buffer(BufferId::values, kv);
  program.size_buffer(BufferId::mixed, q, quantize_mixed);
  program.size_buffer(BufferId::partial, hidden);
  program.add(Norm{.weight = &norm,
                   .epsilon = config.norm_epsilon,
                   .add = layer > 0,  // what the block before this one made
                   .quantize = quantize_normed});
  program.add(Products{.input = BufferId::normed,
                       .products = {{&query, BufferId::queries, q},
                                    {&key, BufferId::keys, kv},
                                    {&value, BufferId::values, kv}}});
  program.add(RopeAndStore{.shape = shape, .layer = layer});
  program.add(Attend{.shape = shape, .layer = layer, .quantize = quantize_mixed && whole_blocks});
  if (quantize_mixed && !whole_blocks) program.add(Quantize{.buffer = BufferId::mixed});
  program.add(
      Products{.input = BufferId::mixed, .products = {{&output, BufferId::partial, hidden}}});
  program.add(AllReduce{});
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
  return queries * (2 * shape.head_size + key_stride + 3) +
         (key_stride + page_size) * shape.head_size;
}

Access Attend::access() const {
  return {.reads = {BufferId::queries, BufferId::kv_cache},
          .writes = {BufferId::mixed, BufferId::scratch},
          .division = Division::other};
}

// Items go to the threads in turn, KV head by KV head: later rows have more positions to see.
void Attend::run(Pass& pass, size_t thread) const {
  const size_t threads = pass.pool.size(), ranges = pass.row_ranges.size();
  const size_t per_kv_head = shape.queries_per_kv_head();
  // With few rows the query heads of one KV head are divided too, so that no thread is idle.
  size_t divisions = 1;
  while (divisions < per_kv_head && ranges * shape.kv_heads * divisions < 4 * threads)
    divisions *= 2;
  divisions = std::min(divisions, per_kv_head);
  const size_t items = shape.kv_heads * ranges * divisions;
  for (size_t item = thread; item < items; item += threads) {
    const size_t kv_head = item / (ranges * divisions);
    const auto [first, last] = split(per_kv_head, divisions, item % divisions);
    const QueryTile tile = {.rows = pass.row_ranges[item / divisions % ranges],
                            .kv_head = kv_head,
                            .head = kv_head * per_kv_head + first,
                            .heads = last - first};
    attend_tile(pass, *this, tile, thread);
  }
}

}  // namespace hearth
