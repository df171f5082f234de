#include "layers/feed_forward.h"

#include <algorithm>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

// The router's norm is rms in every model.
NormConfig router_norms(const ShardConfig& config) {
  return {.kind = NormKind::rms, .epsilon = config.norm.epsilon};
}

}  // namespace

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
  if (block.separate_norms) {
    router_norm.add_slots(router_norms(config), prefix + "router_norm", hidden, slots);
    experts_norm.add_slots(config.norm, prefix + "experts_norm", hidden, slots);
    result_norm.add_slots(config.norm, prefix + "ffn_result_norm", hidden, slots);
    experts_result_norm.add_slots(config.norm, prefix + "experts_result_norm", hidden, slots);
  }
  if (block.output_norms)
    output_norm.add_slots(config.norm, prefix + "ffn_out_norm", hidden, slots);
  if (config.layer_inputs) layer_input.add_slots(config, prefix, slots);
  if (block.layer_scale) slots.add(prefix + "layer_scale", 1, layer_scale);
}

void FeedForward::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const BlockConfig& block = config.kind_of(layer);
  program.size_buffer(BufferId::partial, config.hidden_size);
  if (block.separate_norms)
    compile_separate(config, block, program);
  else
    compile_results(config, block, program);
  add_finish_partial(config, block, output_norm, program);
  if (config.layer_inputs) layer_input.compile(config, layer, program);
  if (!leaves_partial(config, block))
    program.add(AddPartial{.scale = block.layer_scale ? &layer_scale : nullptr});
}

void FeedForward::compile_results(const ShardConfig& config, const BlockConfig& block,
                                  Program& program) const {
  const size_t hidden = config.hidden_size;
  const bool whole = block.feed_forward.units.size() > 0;
  const bool quantize = (whole && quantized(block.feed_forward)) ||
                        (block.experts && experts.quantized()) ||
                        (block.feed_forward_gate && is_quantized(result_gate.type()));
  program.size_buffer(BufferId::normed, hidden, quantize);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = true,
                   .quantize = quantize});
  if (whole) compile_whole(block.feed_forward, BufferId::partial, hidden, hidden, program);
  if (block.feed_forward_gate) {
    program.size_buffer(BufferId::ffn_gate, 1);
    program.add(
        Products{.input = BufferId::normed, .products = {{&result_gate, BufferId::ffn_gate, 1}}});
  }
  if (block.experts) {
    experts.compile_router(*block.experts, program);
    const Combine combine = {.hidden = hidden,
                             .bias = nullptr,
                             .used = 0,
                             .feed_forward = whole,
                             .gate = block.feed_forward_gate,
                             .separate = false};
    experts.compile(*block.experts, combine, program);
  }
  program.add(AllReduce{.columns = hidden});
}

// One sync for both results: each is normed once it is summed over all ranks.
void FeedForward::compile_separate(const ShardConfig& config, const BlockConfig& block,
                                   Program& program) const {
  const size_t hidden = config.hidden_size;
  const bool of_whole = quantized(block.feed_forward), of_experts = experts.quantized();
  const bool of_router = is_quantized(experts.router.type());
  program.size_buffer(BufferId::normed, hidden, of_whole || of_experts || of_router);
  program.size_buffer(BufferId::two_results, 2 * hidden);
  program.add(Norm{.weights = block.input_norms ? &norm : nullptr,
                   .config = config.norm,
                   .add = true,
                   .quantize = of_whole});
  compile_whole(block.feed_forward, BufferId::two_results, hidden, 2 * hidden, program);
  program.add(Norm{.weights = &router_norm,
                   .config = router_norms(config),
                   .add = false,
                   .quantize = of_router});
  experts.compile_router(*block.experts, program);
  program.add(
      Norm{.weights = &experts_norm, .config = config.norm, .add = false, .quantize = of_experts});
  const Combine combine = {.hidden = hidden,
                           .bias = nullptr,
                           .used = 0,
                           .feed_forward = false,
                           .gate = false,
                           .separate = true};
  experts.compile(*block.experts, combine, program);
  program.add(AllReduce{.buffer = BufferId::two_results, .columns = 2 * hidden});
  program.add(
      AddTwoResults{.first = &result_norm, .second = &experts_result_norm, .config = config.norm});
}

bool FeedForward::quantized(const FeedForwardConfig& shape) const {
  return is_quantized(gate.type()) || (shape.gated && is_quantized(up.type()));
}

void FeedForward::compile_whole(const FeedForwardConfig& shape, BufferId output, size_t hidden,
                                size_t stride, Program& program) const {
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
      .products = {{&down, output, hidden, shape.output_bias ? &down_bias : nullptr, stride}}});
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
