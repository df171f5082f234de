#include "layers/feed_forward.h"

#include <algorithm>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {

void FeedForward::add_slots(const ShardConfig& config, const BlockConfig& block,
                            const std::string& prefix, Slots& slots) {
  const FeedForwardConfig& shape = block.feed_forward;
  const size_t hidden = config.hidden_size, units = shape.units.size();
  if (block.input_norms) norm.add_slots(config.norm, prefix + "ffn_norm", hidden, slots);
  if (units > 0) {
    slots.add(prefix + "w1", units, hidden, gate);
    if (shape.gated) slots.add(prefix + "w3", units, hidden, up);
    slots.add(prefix + "w2", hidden, units, down);
    if (shape.bias) slots.add(prefix + "b1", units, gate_bias);
    if (shape.bias && shape.gated) slots.add(prefix + "b3", units, up_bias);
    if (shape.output_bias) slots.add(prefix + "b2", hidden, down_bias);
  }
  if (block.experts) experts.add_slots(*block.experts, hidden, prefix, slots);
  if (block.feed_forward_gate) slots.add(prefix + "ffn_gate", 1, hidden, result_gate);
  if (block.output_norms)
    output_norm.add_slots(config.norm, prefix + "ffn_out_norm", hidden, slots);
}

void FeedForward::compile(const ShardConfig& config, const BlockConfig& block,
                          Program& program) const {
  const size_t hidden = config.hidden_size;
  const bool whole = block.feed_forward.units.size() > 0;
  const bool quantize =
      (whole && (is_quantized(gate.type()) || (!up.empty() && is_quantized(up.type())))) ||
      (block.experts && experts.quantized()) ||
      (block.feed_forward_gate && is_quantized(result_gate.type()));
  program.size_buffer(BufferId::normed, hidden, quantize);
  program.size_buffer(BufferId::partial, hidden);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = true,
                   .quantize = quantize});
  if (whole) compile_whole(block.feed_forward, hidden, program);
  if (block.feed_forward_gate) {
    program.size_buffer(BufferId::ffn_gate, 1);
    program.add(
        Products{.input = BufferId::normed, .products = {{&result_gate, BufferId::ffn_gate, 1}}});
  }
  if (block.experts)
    experts.compile(*block.experts, hidden, whole, block.feed_forward_gate, program);
  program.add(AllReduce{.columns = hidden});
  add_finish_partial(config, block, output_norm, program);
}

void FeedForward::compile_whole(const FeedForwardConfig& shape, size_t hidden,
                                Program& program) const {
  const size_t units = shape.units.size();
  const bool quantize_gate = is_quantized(down.type());
  program.size_buffer(BufferId::gate, units, quantize_gate);
  if (shape.gated) program.size_buffer(BufferId::up, units);
  program.add(
      ActivatedProducts{.gate = {&gate, shape.bias ? &gate_bias : nullptr},
                        .up = {shape.gated ? &up : nullptr, shape.bias ? &up_bias : nullptr},
                        .activation = shape.activation,
                        .clamp = shape.clamp,
                        .quantize = quantize_gate});
  program.add(Products{
      .input = BufferId::gate,
      .products = {{&down, BufferId::partial, hidden, shape.output_bias ? &down_bias : nullptr}}});
}

void activate(const Kernels& kernels, Activation activation, const std::optional<GateClamp>& clamp,
              float* gate, float* up, size_t size) {
  if (clamp && up != nullptr) {
    const float limit = clamp->limit, inverse = 1.0f / clamp->factor;
    for (size_t i = 0; i < size; ++i) {
      gate[i] = std::min(gate[i], limit) * clamp->factor;
      up[i] = (std::clamp(up[i], -limit, limit) + clamp->offset) * inverse;
    }
  }
  kernels.activate[static_cast<size_t>(activation)](gate, up, size);
}

Access ActivatedProducts::access() const {
  BufferSet writes = {BufferId::gate, BufferId::scratch};
  if (up.matrix != nullptr) writes = writes | BufferSet{BufferId::up};
  return {.reads = {BufferId::normed}, .writes = writes, .division = Division::stealing};
}

void ActivatedProducts::run(Pass& pass, size_t thread) const {
  const Activations& normed = pass.buffers[BufferId::normed];
  const size_t rows = pass.batch.rows().size(), units = gate.matrix->rows();
  const Activations gated = pass.buffers[BufferId::gate].of_width(units);
  float* ups = up.matrix == nullptr ? nullptr : pass.buffers[BufferId::up].x;
  void* scratch = pass.buffers[BufferId::scratch].row(thread);
  const size_t groups = (units + kGroupRows - 1) / kGroupRows;
  // Whole blocks of the next product's input: who made one can quantize it at once.
  const size_t unit = std::max(kBlock / kGroupRows, unit_groups(rows));
  pass.queue.begin_phase(thread);
  while (true) {
    const auto range = pass.queue.take(thread, groups, unit);
    const size_t begin = range.first, end = range.second;  // named: a lambda captures them
    if (begin == end) return;
    const size_t first = begin * kGroupRows, last = std::min(end * kGroupRows, units);
    const auto multiply = [&](const Weights& weights, float* y) {
      if (weights.matrix == nullptr) return;
      multiply_groups(pass.kernels, normed, rows, *weights.matrix, units, begin, end, y, scratch);
      if (weights.bias != nullptr) add_bias(*weights.bias, rows, first, last, y);
    };
    multiply(gate, gated.x);
    multiply(up, ups);
    for (size_t r = 0; r < rows; ++r) {
      float* factors = ups == nullptr ? nullptr : ups + r * units + first;
      activate(pass.kernels, activation, clamp, gated.row(r) + first, factors, last - first);
      if (quantize) quantize_columns(pass.kernels, gated, r, first, last);
    }
  }
}

}  // namespace hearth
