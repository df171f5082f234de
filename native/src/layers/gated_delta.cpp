#include "layers/gated_delta.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

// Of the norms of queries and keys.
constexpr float kKeyEpsilon = 1e-6f;
// Rows that pass over a head's state together, while a part of it is in the first-level cache.
constexpr size_t kTileRows = 16;

// ln(1 + e^x); for larger x the same as x in f32.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// A row of a sequence, counted from its first of this step. Those below 0 are of earlier steps.
using Row = ptrdiff_t;

// Neighbouring columns of a buffer at a sequence's rows; before them those of the log's rows, and
// before these what the state keeps.
struct Channels {
  Activations buffer;
  size_t first_row, column, count;
  const float* log;  // [before, log_stride]
  Row before;
  const float* earlier;  // [width - 1, stride]
  size_t log_stride, stride, width;

  // row: from -(before + width - 1) on.
  const float* at(Row row) const {
    if (row >= 0) return buffer.row(first_row + static_cast<size_t>(row)) + column;
    row += before;
    if (row >= 0) return log + static_cast<size_t>(row) * log_stride;
    return earlier + static_cast<size_t>(row + static_cast<Row>(width) - 1) * stride;
  }
};

// out = activation(convolution) of rows [begin, end): [end - begin, channels.count]. filter: that
// of the first channel.
void convolve(const Channels& channels, const float* filter, Row begin, Row end,
              void (*activate)(float*, const float*, size_t), float* out) {
  const size_t count = channels.count, width = channels.width;
  for (Row r = begin; r < end; ++r, out += count) {
    std::fill_n(out, count, 0.0f);
    for (size_t t = 0; t < width; ++t) {
      const float* x = channels.at(r + 1 + static_cast<Row>(t) - static_cast<Row>(width));
      for (size_t c = 0; c < count; ++c) out[c] += filter[c * width + t] * x[c];
    }
    activate(out, nullptr, count);
  }
}

// Copies rows [begin, begin + rows) to `out`, [rows, stride]. From the oldest on, because a row may
// come from further behind in `out`.
void keep(const Channels& channels, Row begin, size_t rows, float* out, size_t stride) {
  for (size_t i = 0; i < rows; ++i, out += stride) {
    const float* from = channels.at(begin + static_cast<Row>(i));
    if (from != out) std::copy_n(from, channels.count, out);
  }
}

}  // namespace

size_t gated_delta_floats(size_t group, size_t key_size, size_t value_size, size_t width) {
  return (width - 1) * (2 * key_size + group * value_size) + group * key_size * value_size;
}

size_t gated_delta_log_floats(size_t group, size_t key_size, size_t value_size) {
  return 2 * key_size + group * value_size + 2 * group;
}

GatedDeltaShape gated_delta_shape(const GatedDeltaConfig& config) {
  return {.key_heads = config.key_heads.size(),
          .group = config.group,
          .tile = config.tile,
          .key_size = config.key_size,
          .value_size = config.value_size,
          .width = config.width};
}

size_t gated_delta_scratch(const GatedDeltaShape& shape) {
  // Queries and keys; values and what comes of them; decay and beta; a state.
  return kTileRows * (2 * shape.key_size + 2 * shape.value_size + 2) +
         shape.key_size * shape.value_size;
}

void GatedDelta::add_slots(const ShardConfig& config, const BlockConfig& block,
                           const std::string& prefix, Slots& slots) {
  const GatedDeltaShape shape = gated_delta_shape(std::get<GatedDeltaConfig>(block.mixer));
  const size_t hidden = config.hidden_size, heads = shape.value_heads(), width = shape.width;
  const size_t keys = shape.key_heads * shape.key_size, values = heads * shape.value_size;
  if (block.input_norms) norm.add_slots(config.norm, prefix + "attn_norm", hidden, slots);
  slots.add(prefix + "wq", keys, hidden, query);
  slots.add(prefix + "wk", keys, hidden, key);
  slots.add(prefix + "wv", values, hidden, value);
  slots.add(prefix + "wg", values, hidden, gate);
  slots.add(prefix + "wa", heads, hidden, decay);
  slots.add(prefix + "wb", heads, hidden, beta);
  slots.add(prefix + "decay_rate", heads, decay_rate);
  slots.add(prefix + "decay_bias", heads, decay_bias);
  slots.add(prefix + "conv_q", keys * width, query_filter);
  slots.add(prefix + "conv_k", keys * width, key_filter);
  slots.add(prefix + "conv_v", values * width, value_filter);
  slots.add(prefix + "mixed_norm", shape.value_size, mixed_norm.weight);
  slots.add(prefix + "wo", hidden, values, output);
  if (block.output_norms)
    output_norm.add_slots(config.norm, prefix + "attn_out_norm", hidden, slots);
  const auto size = static_cast<float>(shape.key_size);
  query_scale.assign(shape.key_size, 1.0f / size);
  key_scale.assign(shape.key_size, 1.0f / std::sqrt(size));
}

void GatedDelta::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const BlockConfig& block = config.kind_of(layer);
  const auto& mixer = std::get<GatedDeltaConfig>(block.mixer);
  const GatedDeltaShape shape = gated_delta_shape(mixer);
  const size_t hidden = config.hidden_size, heads = shape.value_heads();
  const size_t keys = shape.key_heads * shape.key_size, values = heads * shape.value_size;
  std::vector<Products::Product> products = {
      {&query, BufferId::queries, keys},      {&key, BufferId::keys, keys},
      {&value, BufferId::values, values},     {&gate, BufferId::mixer_gate, values},
      {&decay, BufferId::mixer_decay, heads}, {&beta, BufferId::mixer_beta, heads}};
  bool quantize_normed = false;
  for (const auto& each : products) {
    quantize_normed = quantize_normed || is_quantized(each.weight->type());
    program.size_buffer(each.output, each.rows);
  }
  const bool quantize_mixed = is_quantized(output.type());
  // Else blocks straddle heads, and only whole rows can be quantized.
  const bool whole_blocks = shape.value_size % kBlock == 0;
  program.size_buffer(BufferId::normed, hidden, quantize_normed);
  program.size_buffer(BufferId::mixed, values, quantize_mixed);
  program.size_buffer(BufferId::partial, hidden);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = layer > 0 && leaves_partial(config, config.kind_of(layer - 1)),
                   .quantize = quantize_normed});
  program.add(Products{.input = BufferId::normed, .products = std::move(products)});
  program.add(DeltaRule{.shape = shape,
                        .layer = layer,
                        .weights = this,
                        .activation = mixer.activation,
                        .epsilon = config.norm.epsilon,
                        .quantize = quantize_mixed && whole_blocks});
  if (quantize_mixed && !whole_blocks)
    program.add(Quantize{.buffer = BufferId::mixed, .columns = values});
  program.add(Products{.input = BufferId::mixed,
                       .products = {{&output, BufferId::partial, hidden, nullptr}}});
  program.add(AllReduce{.columns = hidden});
  add_finish_partial(config, block, output_norm, program);
}

Access DeltaRule::access() const {
  return {.reads = {BufferId::queries, BufferId::keys, BufferId::values, BufferId::mixer_gate,
                    BufferId::mixer_decay, BufferId::mixer_beta, BufferId::states},
          .writes = {BufferId::mixed, BufferId::states, BufferId::scratch},
          .division = Division::other};
}

namespace {

// The rows of one sequence, and one key head with its value heads: an item of the work.
//
// First those rows of the log that the step begins behind, then the step's own. The state goes on
// up to the last rows, which may be taken back; these have a copy of it, and become the log.
class DeltaItem {
 public:
  DeltaItem(Pass& pass, const DeltaRule& operation, const SequenceStep& sequence, size_t first_row,
            size_t key_head, size_t thread)
      : pass_(pass),
        operation_(operation),
        shape_(operation.shape),
        first_row_(first_row),
        key_head_(key_head),
        before_(static_cast<Row>(pass.states.before(sequence.slot))),
        rows_(static_cast<Row>(sequence.rows)),
        undo_(sequence.undo),
        scratch_(pass.buffers[BufferId::scratch].row(thread)) {
    SequenceStates& states = pass.states;
    float* state = states.at(sequence.slot, operation.layer);
    earlier_ = state + key_head * gated_delta_floats(shape_.group, shape_.key_size,
                                                     shape_.value_size, shape_.width);
    states_ = earlier_ + (shape_.width - 1) * channels();
    log_ =
        states.log_at(sequence.slot, operation.layer) + key_head * states.undo() * log_channels();
  }

  void run() {
    const Row settled = rows_ - static_cast<Row>(undo_);
    for (Row begin = -before_; begin < settled; begin += kTileRows)
      run_tile(begin, std::min(begin + static_cast<Row>(kTileRows), settled), false);
    static_assert(kMostUndo <= kTileRows);
    if (undo_ > 0) run_tile(settled, rows_, true);
    keep_rows(settled);
  }

 private:
  // Of what the convolution keeps of a row: queries, keys, values.
  size_t channels() const { return 2 * shape_.key_size + shape_.group * shape_.value_size; }
  // And of the log: also decay and beta of each value head.
  size_t log_channels() const { return channels() + 2 * shape_.group; }
  size_t value_channel(size_t n) const { return 2 * shape_.key_size + n * shape_.value_size; }

  Channels columns_of(BufferId buffer, size_t width, size_t column, size_t count,
                      size_t channel) const {
    return {.buffer = pass_.buffers[buffer].of_width(width),
            .first_row = first_row_,
            .column = column,
            .count = count,
            .log = log_ + channel,
            .before = before_,
            .earlier = earlier_ + channel,
            .log_stride = log_channels(),
            .stride = channels(),
            .width = shape_.width};
  }
  Channels keys(BufferId buffer, size_t channel) const {
    const size_t size = shape_.key_size;
    return columns_of(buffer, shape_.key_heads * size, key_head_ * size, size, channel);
  }
  // Of the key head's value head n.
  Channels values(size_t n) const {
    const size_t size = shape_.value_size, heads = shape_.value_heads();
    const size_t column = shape_.value_head(key_head_, n) * size;
    return columns_of(BufferId::values, heads * size, column, size, value_channel(n));
  }
  // The numbers of which decay (0) and beta (1) of value head n are made: one column, which only
  // the log keeps.
  Channels gates(size_t which, size_t n) const {
    const BufferId buffer = which == 0 ? BufferId::mixer_decay : BufferId::mixer_beta;
    const size_t head = shape_.value_head(key_head_, n);
    return columns_of(buffer, shape_.value_heads(), head, 1, channels() + 2 * n + which);
  }

  void keep_rows(Row settled) const {
    const size_t kept = shape_.width - 1;
    const auto all = [&](auto&& each) {
      each(keys(BufferId::queries, 0), size_t{0});
      each(keys(BufferId::keys, shape_.key_size), shape_.key_size);
      for (size_t n = 0; n < shape_.group; ++n) each(values(n), value_channel(n));
    };
    all([&](const Channels& from, size_t channel) {
      keep(from, settled - static_cast<Row>(kept), kept, earlier_ + channel, channels());
    });
    if (undo_ == 0) return;
    const auto log = [&](const Channels& from, size_t channel) {
      keep(from, settled, undo_, log_ + channel, log_channels());
    };
    all(log);
    for (size_t n = 0; n < shape_.group; ++n) {
      for (size_t which : {0, 1}) log(gates(which, n), channels() + 2 * n + which);
    }
  }

  // drafts: the rows may be taken back, so the state stays.
  void run_tile(Row begin, Row end, bool drafts) {
    const GatedDelta& weights = *operation_.weights;
    const size_t size = shape_.key_size;
    const auto count = static_cast<size_t>(end - begin);
    float* queries = scratch_;
    float* keys_out = queries + kTileRows * size;
    const auto activate = pass_.kernels.activate[static_cast<size_t>(operation_.activation)];
    const size_t filter = key_head_ * size * shape_.width;
    convolve(keys(BufferId::queries, 0), weights.query_filter.data() + filter, begin, end, activate,
             queries);
    convolve(keys(BufferId::keys, size), weights.key_filter.data() + filter, begin, end, activate,
             keys_out);
    const float epsilon = kKeyEpsilon / static_cast<float>(size);
    for (size_t r = 0; r < count; ++r) {
      float *query = queries + r * size, *key = keys_out + r * size;
      pass_.kernels.rms_norm(query, weights.query_scale.data(), size, epsilon, query);
      pass_.kernels.rms_norm(key, weights.key_scale.data(), size, epsilon, key);
    }
    for (size_t n = 0; n < shape_.group; ++n)
      run_value_head(n, begin, end, queries, keys_out, drafts);
  }

  void run_value_head(size_t n, Row begin, Row end, const float* queries, const float* keys,
                      bool drafts) {
    const GatedDelta& weights = *operation_.weights;
    const size_t head = shape_.value_head(key_head_, n);
    const size_t size = shape_.value_size, state_size = shape_.key_size * size;
    const auto count = static_cast<size_t>(end - begin);
    float* values_in = scratch_ + 2 * kTileRows * shape_.key_size;
    float* out = values_in + kTileRows * size;
    float* decay = out + kTileRows * size;
    float* beta = decay + kTileRows;
    const auto activate = pass_.kernels.activate[static_cast<size_t>(operation_.activation)];
    convolve(values(n), weights.value_filter.data() + head * size * shape_.width, begin, end,
             activate, values_in);
    const Channels decays = gates(0, n), betas = gates(1, n);
    for (size_t r = 0; r < count; ++r) {
      const Row row = begin + static_cast<Row>(r);
      const float rate = softplus(*decays.at(row) + weights.decay_bias[head]);
      decay[r] = std::exp(weights.decay_rate[head] * rate);
      beta[r] = 1.0f / (1.0f + std::exp(-*betas.at(row)));
    }
    float* state = states_ + n * state_size;
    if (drafts) state = std::copy_n(state, state_size, beta + kTileRows) - state_size;
    pass_.kernels.delta_rule({.state = state,
                              .queries = queries,
                              .keys = keys,
                              .values = values_in,
                              .decay = decay,
                              .beta = beta,
                              .tokens = count,
                              .key_size = shape_.key_size,
                              .value_size = size,
                              .out = out});
    // The results of the log's rows were read in their own step.
    for (Row row = std::max<Row>(begin, 0); row < end; ++row) {
      finish(first_row_ + static_cast<size_t>(row), head,
             out + static_cast<size_t>(row - begin) * size);
    }
  }

  // mixed = rms_norm(out) * silu(gate)
  void finish(size_t row, size_t head, float* out) const {
    const size_t size = shape_.value_size, columns = shape_.value_heads() * size;
    const Activations gate = pass_.buffers[BufferId::mixer_gate].of_width(columns);
    const Activations mixed = pass_.buffers[BufferId::mixed].of_width(columns);
    const size_t begin = head * size;
    const float* norm = operation_.weights->mixed_norm.weight.data();
    pass_.kernels.rms_norm(out, norm, size, operation_.epsilon, out);
    std::copy_n(gate.row(row) + begin, size, mixed.row(row) + begin);
    pass_.kernels.activate[static_cast<size_t>(Activation::silu)](mixed.row(row) + begin, out,
                                                                  size);
    if (operation_.quantize) quantize_columns(pass_.kernels, mixed, row, begin, begin + size);
  }

  Pass& pass_;
  const DeltaRule& operation_;
  const GatedDeltaShape& shape_;
  size_t first_row_, key_head_;
  Row before_, rows_;
  size_t undo_;
  float* scratch_;
  float* earlier_;  // [width - 1, channels]
  float* states_;   // [group, key_size, value_size]
  float* log_;      // [undo, log_channels]
};

}  // namespace

// Divided by (sequence, key head): a head's rows follow each other.
void DeltaRule::run(Pass& pass, size_t thread) const {
  const auto [begin, end] = pass.part(pass.batch.sequences().size() * shape.key_heads, thread);
  size_t item = 0, first_row = 0;
  for (const SequenceStep& sequence : pass.batch.sequences()) {
    for (size_t head = 0; head < shape.key_heads; ++head, ++item) {
      if (begin <= item && item < end)
        DeltaItem(pass, *this, sequence, first_row, head, thread).run();
    }
    first_row += sequence.rows;
  }
}

}  // namespace hearth
