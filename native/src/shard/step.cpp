// The forward pass. All threads run the same program and meet at barriers; a phase is split by rows
// of the batch, by (row, head), or by groups of matrix rows, which are dealt as threads come for
// them. No number depends on how the work was split, nor on which other rows share the batch: the
// same sequence gives the same bits however its prompt was cut and whoever it was batched with.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "hearth/shard.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t since(Clock::time_point start) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
}

// Groups that one thread takes together at least: as many as a tile of any kernel has; and, of many
// tokens, as many as make up for the activations that a product copies each time.
size_t unit_groups(size_t tokens) { return tokens > 8 ? 16 : 2; }

// Queries that pass over a page together: with it and their sums they should fit a first-level
// cache.
constexpr size_t kTileQueries = 64;
// So many read f16 keys and values as they are; widening them costs about as much as it saves.
constexpr size_t kDirectQueries = 12;

}  // namespace

class Shard::Pass {
 public:
  Pass(Shard& shard, std::span<float> x, const std::vector<SequenceStep>& sequences,
       std::span<const uint32_t> output_rows, float* logits, Lane* lane)
      : shard_(shard),
        config_(shard.config_),
        kernels_(shard.kernels_),
        x_(x.data()),
        output_rows_(output_rows),
        logits_(logits),
        lane_(lane) {
    place(x.size(), sequences);
    for (size_t i = 0; i < output_rows.size(); ++i) {
      if (output_rows[i] >= rows_.size()) {
        throw std::invalid_argument("output row " + std::to_string(output_rows[i]) +
                                    " of a step of " + std::to_string(rows_.size()) + " rows");
      }
      // Also what keeps them within the workspace, which has room for each row once.
      if (i > 0 && output_rows[i] <= output_rows[i - 1]) {
        throw std::invalid_argument("output row " + std::to_string(output_rows[i]) +
                                    " comes after " + std::to_string(output_rows[i - 1]) +
                                    ": they must ascend");
      }
    }
    if (!output_rows.empty() && config_.vocab.size() == 0)
      throw std::invalid_argument("this shard has no output head, so no output rows");
    take_pages(sequences);
    lay_out();
  }

  StepTiming run() {
    const auto start = Clock::now();
    shard_.pool_.run([this](size_t thread) { forward(thread); });
    if (error_) std::rethrow_exception(error_);
    StepTiming timing;
    timing.wall_ns = since(start);
    timing.sync_ns = sync_ns_;
    timing.compute_ns = timing.wall_ns - sync_ns_;
    return timing;
  }

 private:
  // Rows that follow one another in a sequence.
  struct Run {
    size_t row, rows;
  };
  // Queries that pass over a sequence's pages together: of a run, for heads that share a KV head.
  struct Tile {
    Run run;
    size_t kv, head, heads;
  };

  // Checks the sequences.
  void place(size_t numbers, const std::vector<SequenceStep>& sequences) {
    const size_t page_size = config_.page_size;
    std::vector<uint32_t> written;
    for (const SequenceStep& sequence : sequences) {
      if (sequence.rows == 0 || sequence.rows > config_.max_step_tokens)
        throw std::invalid_argument("a sequence has " + std::to_string(sequence.rows) +
                                    " rows, not 1 .. " + std::to_string(config_.max_step_tokens));
      const size_t held = sequence.pages.size() * page_size;
      if (sequence.position > held || sequence.rows > held - sequence.position) {
        throw std::invalid_argument("positions up to " +
                                    std::to_string(sequence.position + sequence.rows) +
                                    " do not fit " + std::to_string(sequence.pages.size()) +
                                    " pages of " + std::to_string(page_size));
      }
      const size_t used = (sequence.position + sequence.rows + page_size - 1) / page_size;
      for (size_t p = sequence.position / page_size; p < used; ++p)
        written.push_back(sequence.pages[p]);
      for (size_t r = 0; r < sequence.rows; ++r)
        rows_.push_back({&sequence, sequence.position + r});
      if (rows_.size() > config_.max_step_tokens) {
        throw std::invalid_argument("a step has more than " +
                                    std::to_string(config_.max_step_tokens) + " rows");
      }
    }
    // Threads write without looking at each other: two rows must never be meant for one slot.
    std::sort(written.begin(), written.end());
    if (const auto twice = std::adjacent_find(written.begin(), written.end());
        twice != written.end()) {
      throw std::invalid_argument("page " + std::to_string(*twice) +
                                  " would be written twice in one step");
    }
    if (rows_.empty() || numbers != rows_.size() * config_.hidden_size) {
      throw std::invalid_argument("activations have " + std::to_string(numbers) + " numbers, not " +
                                  std::to_string(rows_.size()) + " rows of " +
                                  std::to_string(config_.hidden_size));
    }
  }

  // Gives pages memory, once all else is checked: a step that is refused should take none.
  void take_pages(const std::vector<SequenceStep>& sequences) {
    for (const SequenceStep& sequence : sequences) {
      const size_t end = sequence.position + sequence.rows;
      for (size_t p = 0; p * config_.page_size < end; ++p) shard_.kv_.ensure(sequence.pages[p]);
    }
  }

  // Cuts the rows into runs for attention; returns the queries of the largest tile.
  size_t cut_runs() {
    const size_t kv_heads = config_.kv_heads.size();
    const size_t per_head = config_.heads.size() / kv_heads;
    // At least four items for each thread, where there are so many.
    const size_t most = std::clamp<size_t>(rows_.size() * kv_heads / (4 * shard_.pool_.size()), 1,
                                           std::max<size_t>(kTileQueries / per_head, 1));
    size_t largest = 0;
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (runs_.empty() || runs_.back().rows == most ||
          rows_[row].sequence != rows_[row - 1].sequence) {
        runs_.push_back({row, 0});
      }
      largest = std::max(largest, ++runs_.back().rows);
    }
    return largest * per_head;
  }

  void lay_out() {
    const size_t n = rows_.size();
    const size_t hidden = config_.hidden_size;
    const size_t q = config_.heads.size() * config_.head_size;
    const size_t kv = config_.kv_heads.size() * config_.head_size;
    const size_t ffn = config_.ffn.size();
    const size_t widest = std::max(hidden, q);
    // See attend_tile for what a tile needs.
    const size_t stride = shard_.kv_.stride();
    scratch_size_ = cut_runs() * (2 * config_.head_size + stride + 3);
    scratch_size_ += (stride + config_.page_size) * config_.head_size;
    scratch_size_ = (scratch_size_ + 15) / 16 * 16;

    size_t floats = 0;
    const auto reserve = [&](size_t count) {
      const size_t at = floats;
      floats += (count + 15) / 16 * 16;  // whole cache lines
      return at;
    };
    const size_t at_normed = reserve(n * hidden), at_partial = reserve(n * hidden),
                 at_cos = reserve(n * config_.head_size / 2),
                 at_sin = reserve(n * config_.head_size / 2),
                 at_scales = reserve(n * (widest + ffn) / kBlock),
                 at_scratch = reserve(shard_.pool_.size() * scratch_size_);
    // What attention makes is used up before the feed-forward makes anything: they share a place.
    const size_t shared = floats;
    const size_t at_q = reserve(n * q), at_k = reserve(n * kv), at_v = reserve(n * kv),
                 at_mixed = reserve(n * q);
    const size_t attention_end = std::exchange(floats, shared);
    const size_t at_gate = reserve(n * ffn), at_up = reserve(n * ffn);
    floats = std::max(floats, attention_end);
    if (shard_.workspace_.size() < floats) shard_.workspace_.resize(floats);
    float* base = shard_.workspace_.data();
    if (shard_.quantized_.size() < n * (widest + ffn)) shard_.quantized_.resize(n * (widest + ffn));
    if (shard_.sums_.size() < n * (widest + ffn) / kBlock)
      shard_.sums_.resize(n * (widest + ffn) / kBlock);
    quantized_ = {nullptr, 0, shard_.quantized_.data(), base + at_scales, shard_.sums_.data()};
    quantized_gate_ = {nullptr, 0, quantized_.q + n * widest,
                       quantized_.scales + n * widest / kBlock,
                       quantized_.sums + n * widest / kBlock};
    normed_ = base + at_normed;
    q_ = base + at_q;
    k_ = base + at_k;
    v_ = base + at_v;
    mixed_ = base + at_mixed;
    partial_ = base + at_partial;
    gate_ = base + at_gate;
    up_ = base + at_up;
    cos_ = base + at_cos;
    sin_ = base + at_sin;
    scratch_ = base + at_scratch;
  }

  void forward(size_t thread) {
    angles(thread);
    for (size_t n = 0; n < shard_.layers_.size(); ++n) {
      const Layer& layer = shard_.layers_[n];
      normalize(thread, layer.attn_norm, n > 0,
                is_quantized(layer.wq.type()) || is_quantized(layer.wk.type()) ||
                    is_quantized(layer.wv.type()));
      barrier();
      const size_t q = layer.wq.rows(), kv = layer.wk.rows();
      multiply(thread, rows_.size(), input(normed_, config_.hidden_size),
               {{&layer.wq, 0, q, q_, q}, {&layer.wk, 0, kv, k_, kv}, {&layer.wv, 0, kv, v_, kv}});
      barrier();
      rotate_and_store(thread, n);
      barrier();
      attend(thread, n, is_quantized(layer.wo.type()));
      barrier();
      multiply(thread, rows_.size(), input(mixed_, q),
               {{&layer.wo, 0, config_.hidden_size, partial_, config_.hidden_size}});
      if (!reduce(thread)) return;

      normalize(thread, layer.ffn_norm, true,
                is_quantized(layer.w1.type()) || is_quantized(layer.w3.type()));
      barrier();
      feed_forward(thread, layer);
      barrier();
      multiply(thread, rows_.size(), gate_input(),
               {{&layer.w2, 0, config_.hidden_size, partial_, config_.hidden_size}});
      if (!reduce(thread)) return;
    }
    add_partial(thread);
    if (!output_rows_.empty()) {
      barrier();
      head(thread);
    }
  }

  void barrier() { shard_.pool_.barrier(); }

  std::pair<size_t, size_t> my(size_t items, size_t thread) const {
    return split(items, shard_.pool_.size(), thread);
  }

  Input input(const float* x, size_t columns) const {
    Input in = quantized_;
    in.x = x;
    in.columns = columns;
    return in;
  }

  // Apart from the other: one thread quantizes its gate while another still reads the norm.
  Input gate_input() const {
    Input in = quantized_gate_;
    in.x = gate_;
    in.columns = config_.ffn.size();
    return in;
  }

  // The angle of each pair of a head, per row; once for all layers.
  void angles(size_t thread) {
    const size_t half = config_.head_size / 2;
    const auto [begin, end] = my(rows_.size(), thread);
    for (size_t r = begin; r < end; ++r) {
      for (size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(rows_[r].position) * config_.rope_frequencies[i];
        cos_[r * half + i] = std::cos(angle);
        sin_[r * half + i] = std::sin(angle);
      }
    }
  }

  void add_partial(size_t thread) {
    const size_t hidden = config_.hidden_size;
    const auto [begin, end] = my(rows_.size(), thread);
    for (size_t r = begin; r < end; ++r)
      kernels_.add(x_ + r * hidden, partial_ + r * hidden, hidden);
  }

  // x += partial (where one is waiting); normed = norm(x), quantized where a product wants that.
  void normalize(size_t thread, const std::vector<float>& weight, bool add, bool quantize) {
    const size_t hidden = config_.hidden_size;
    if (add) add_partial(thread);
    const auto [begin, end] = my(rows_.size(), thread);
    for (size_t r = begin; r < end; ++r) {
      kernels_.rms_norm(x_ + r * hidden, weight.data(), hidden, config_.norm_epsilon,
                        normed_ + r * hidden);
      if (quantize) quantize_part(input(normed_, hidden), r, 0, hidden);
    }
  }

  // Columns [begin, end) of one row, on block borders.
  void quantize_part(const Input& in, size_t row, size_t begin, size_t end) const {
    const size_t at = row * in.columns + begin;
    const size_t block = row * (in.columns / kBlock) + begin / kBlock;
    kernels_.quantize(in.x + at, end - begin, in.q + at, in.scales + block, in.sums + block);
  }

  // This thread's part of several products of one input.
  void multiply(size_t thread, size_t tokens, const Input& in,
                std::initializer_list<Product> products) {
    size_t total = 0;
    for (const Product& product : products) total += groups(product);
    shard_.dealer_.open(thread);
    while (true) {
      auto [begin, end] = shard_.dealer_.take(thread, total, unit_groups(tokens));
      if (begin == end) return;
      for (const Product& product : products) {
        const size_t count = groups(product);
        if (begin < count) multiply_groups(tokens, in, product, begin, std::min(end, count));
        begin -= std::min(begin, count);
        end -= std::min(end, count);
      }
    }
  }

  static size_t groups(const Product& product) {
    return (product.rows + kGroupRows - 1) / kGroupRows;
  }

  void multiply_groups(size_t tokens, const Input& in, const Product& product, size_t begin,
                       size_t end) const {
    if (begin >= end) return;
    const Matrix& matrix = *product.matrix;
    const size_t row = begin * kGroupRows;
    const MatmulArgs args = {
        .weights = matrix.group(product.first_row / kGroupRows + begin),
        .group_bytes = matrix.group_bytes(),
        .groups = end - begin,
        .columns = matrix.columns(),
        .rows = std::min(end * kGroupRows, product.rows) - row,
        .tokens = tokens,
        .x = in.x,
        .xq = in.q,
        .x_scales = in.scales,
        .x_sums = in.sums,
        .y = product.y + row,
        .y_stride = product.y_stride,
    };
    switch (matrix.type()) {
      case Type::f32:
        return kernels_.matmul_f32(args);
      case Type::f16:
        return kernels_.matmul_f16(args);
      case Type::q80:
        return kernels_.matmul_q80(args);
      case Type::q40:
        return kernels_.matmul_q40(args);
    }
  }

  // Queries are rotated and scaled in place, keys rotated and stored, values stored.
  void rotate_and_store(size_t thread, size_t layer) {
    const size_t size = config_.head_size, half = size / 2;
    const size_t heads = config_.heads.size(), kv_heads = config_.kv_heads.size();
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const auto [begin, end] = my(rows_.size() * (heads + kv_heads), thread);
    for (size_t item = begin; item < end; ++item) {
      const size_t r = item / (heads + kv_heads), h = item % (heads + kv_heads);
      const float* cos = cos_ + r * half;
      const float* sin = sin_ + r * half;
      if (h < heads) {
        float* q = q_ + (r * heads + h) * size;
        kernels_.rope(q, cos, sin, half);
        for (size_t i = 0; i < size; ++i) q[i] *= scale;
        continue;
      }
      const size_t kv = h - heads;
      float* k = k_ + (r * kv_heads + kv) * size;
      kernels_.rope(k, cos, sin, half);
      const uint32_t page = rows_[r].sequence->pages[rows_[r].position / config_.page_size];
      const size_t slot = rows_[r].position % config_.page_size;
      shard_.kv_.store_key(kernels_, shard_.kv_.keys(page, layer, kv), slot, k);
      shard_.kv_.store_value(kernels_, shard_.kv_.values(page, layer, kv), slot,
                             v_ + (r * kv_heads + kv) * size);
    }
  }

  // Items are dealt like cards, KV head by KV head: later rows cost more than earlier ones.
  void attend(size_t thread, size_t layer, bool quantize) {
    const size_t threads = shard_.pool_.size();
    const size_t kv_heads = config_.kv_heads.size();
    const size_t per_head = config_.heads.size() / kv_heads;
    // Few rows: the query heads of one KV head are divided too, so that no thread is idle.
    size_t parts = 1;
    while (parts < per_head && runs_.size() * kv_heads * parts < 4 * threads) parts *= 2;
    parts = std::min(parts, per_head);
    const size_t items = kv_heads * runs_.size() * parts;
    for (size_t item = thread; item < items; item += threads) {
      const size_t kv = item / (runs_.size() * parts);
      const auto [first, last] = split(per_head, parts, item % parts);
      attend_tile(thread, layer,
                  {runs_[item / parts % runs_.size()], kv, kv * per_head + first, last - first},
                  quantize);
    }
    if (quantize && config_.head_size % kBlock != 0) {
      // Blocks straddle heads: only whole rows can be quantized, when all their heads are there.
      barrier();
      const size_t width = config_.heads.size() * config_.head_size;
      const auto [begin, end] = my(rows_.size(), thread);
      for (size_t r = begin; r < end; ++r) quantize_part(input(mixed_, width), r, 0, width);
    }
  }

  void attend_tile(size_t thread, size_t layer, const Tile& tile, bool quantize) {
    const size_t size = config_.head_size, page_size = config_.page_size;
    const size_t stride = shard_.kv_.stride(), width = config_.heads.size() * size;
    const size_t queries = tile.run.rows * tile.heads, of_row = tile.heads * size;
    float* scratch = scratch_ + thread * scratch_size_;
    const auto take = [&](size_t count) { return std::exchange(scratch, scratch + count); };
    float* q = take(queries * size);
    AttendArgs args = {
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
    float* keys = take(size * stride);
    float* values = take(page_size * size);
    for (size_t r = 0; r < tile.run.rows; ++r)
      std::copy_n(q_ + (tile.run.row + r) * width + tile.head * size, of_row, q + r * of_row);
    std::fill_n(args.largest, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(args.sum, queries, 0.0f);
    std::fill_n(args.out, queries * size, 0.0f);

    // Few queries read f16 as it is; for more it is widened once.
    const bool widen = config_.kv_type == KvType::q80 ||
                       (config_.kv_type == KvType::f16 && queries > kDirectQueries);
    const auto attend =
        config_.kv_type == KvType::f16 && !widen ? kernels_.attend_f16 : kernels_.attend_f32;
    const auto& pages = rows_[tile.run.row].sequence->pages;
    const size_t first = rows_[tile.run.row].position, last = first + tile.run.rows - 1;
    for (size_t p = 0, at = 0; at <= last; ++p, at += page_size) {
      args.keys = shard_.kv_.keys(pages[p], layer, tile.kv);
      args.values = shard_.kv_.values(pages[p], layer, tile.kv);
      if (widen) {
        shard_.kv_.widen_keys(kernels_, args.keys, keys);
        shard_.kv_.widen_values(kernels_, args.values, std::min(page_size, last + 1 - at), values);
        args.keys = keys;
        args.values = values;
      }
      if (at + page_size <= first + 1) {
        args.slots = page_size;
        attend(args);
        continue;
      }
      // Here each row sees another number of slots, from none to all.
      for (size_t r = at > first ? at - first : 0; r < tile.run.rows; ++r) {
        AttendArgs row = args;
        const size_t query = r * tile.heads;
        row.queries = tile.heads;
        row.slots = std::min(page_size, first + r + 1 - at);
        row.q += query * size;
        row.largest += query;
        row.sum += query;
        row.out += query * size;
        attend(row);
      }
    }
    for (size_t r = 0; r < tile.run.rows; ++r) {
      float* out = mixed_ + (tile.run.row + r) * width + tile.head * size;
      for (size_t h = 0; h < tile.heads; ++h) {
        const size_t query = r * tile.heads + h;
        const float inverse = 1.0f / args.sum[query];
        for (size_t i = 0; i < size; ++i) out[h * size + i] = args.out[query * size + i] * inverse;
      }
      if (quantize && size % kBlock == 0) {
        quantize_part(input(mixed_, width), tile.run.row + r, tile.head * size,
                      (tile.head + tile.heads) * size);
      }
    }
  }

  // gate = silu(w1 x) * (w3 x); a thread that made a whole block of columns quantizes it at once.
  void feed_forward(size_t thread, const Layer& layer) {
    const size_t ffn = config_.ffn.size();
    const size_t all = (ffn + kGroupRows - 1) / kGroupRows;
    const Input in = input(normed_, config_.hidden_size);
    // Whole blocks of the product that follows.
    const size_t unit = std::max(kBlock / kGroupRows, unit_groups(rows_.size()));
    shard_.dealer_.open(thread);
    while (true) {
      const auto [begin, end] = shard_.dealer_.take(thread, all, unit);
      if (begin == end) return;
      multiply_groups(rows_.size(), in, {&layer.w1, 0, ffn, gate_, ffn}, begin, end);
      multiply_groups(rows_.size(), in, {&layer.w3, 0, ffn, up_, ffn}, begin, end);
      const size_t from = begin * kGroupRows, to = std::min(end * kGroupRows, ffn);
      for (size_t r = 0; r < rows_.size(); ++r) {
        kernels_.swiglu(gate_ + r * ffn + from, up_ + r * ffn + from, to - from);
        if (is_quantized(layer.w2.type())) quantize_part(gate_input(), r, from, to);
      }
    }
  }

  // Sums up partial over the ranks. False when the step is given up: then every thread returns.
  bool reduce(size_t thread) {
    barrier();
    if (lane_ == nullptr) return true;
    if (thread == 0) {
      const auto start = Clock::now();
      try {
        lane_->all_reduce(partial_, rows_.size(), config_.hidden_size);
      } catch (...) {
        error_ = std::current_exception();
      }
      sync_ns_ += since(start);
    }
    barrier();
    return !error_;
  }

  void head(size_t thread) {
    const size_t hidden = config_.hidden_size, vocab = config_.vocab.size();
    const Matrix& matrix = config_.head_from_embedding ? shard_.embedding_ : shard_.head_;
    const auto [begin, end] = my(output_rows_.size(), thread);
    for (size_t i = begin; i < end; ++i) {
      kernels_.rms_norm(x_ + output_rows_[i] * hidden, shard_.norm_.data(), hidden,
                        config_.norm_epsilon, normed_ + i * hidden);
      if (is_quantized(matrix.type())) quantize_part(input(normed_, hidden), i, 0, hidden);
    }
    barrier();
    multiply(thread, output_rows_.size(), input(normed_, hidden),
             {{&matrix, 0, vocab, logits_, vocab}});
  }

  Shard& shard_;
  const ShardConfig& config_;
  const Kernels& kernels_;
  float* x_;
  std::span<const uint32_t> output_rows_;
  float* logits_;
  Lane* lane_;
  std::vector<Row> rows_;
  std::vector<Run> runs_;
  size_t scratch_size_ = 0;
  float *normed_, *q_, *k_, *v_, *mixed_, *partial_, *gate_, *up_, *cos_, *sin_, *scratch_;
  Input quantized_, quantized_gate_;
  uint64_t sync_ns_ = 0;
  std::exception_ptr error_;
};

StepTiming Shard::step(std::span<float> x, const std::vector<SequenceStep>& sequences,
                       std::span<const uint32_t> output_rows, float* logits, Lane* lane) {
  const std::unique_lock alone(stepping_, std::try_to_lock);
  if (!alone.owns_lock()) throw std::logic_error("the shard is in the middle of another step");
  if (const auto names = missing(); !names.empty()) {
    throw std::logic_error("the shard lacks " + std::to_string(names.size()) +
                           " slices, the first is '" + names.front() + "'");
  }
  return Pass(*this, x, sequences, output_rows, logits, lane).run();
}

}  // namespace hearth
