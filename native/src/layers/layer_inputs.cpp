#include "layers/layer_inputs.h"

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {

void LayerInput::add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots) {
  const size_t size = config.layer_inputs->size, hidden = config.hidden_size;
  slots.add(prefix + "layer_gate", size, hidden, gate);
  slots.add(prefix + "layer_out", hidden, size, output);
  output_norm.add_slots(config.norm, prefix + "layer_out_norm", hidden, slots);
}

void LayerInput::compile(const ShardConfig& config, size_t layer, Program& program) const {
  const LayerInputsConfig& inputs = *config.layer_inputs;
  const size_t hidden = config.hidden_size;
  const bool quantize_normed = is_quantized(gate.type());
  const bool quantize_gate = is_quantized(output.type());
  program.size_buffer(BufferId::normed, hidden, quantize_normed);
  program.size_buffer(BufferId::layer_gate, inputs.size, quantize_gate);
  program.size_buffer(BufferId::partial, hidden);
  program.add(
      Norm{.weights = nullptr, .config = config.norm, .add = true, .quantize = quantize_normed});
  program.add(Products{.input = BufferId::normed,
                       .products = {{&gate, BufferId::layer_gate, inputs.size}}});
  program.add(GateLayerInput{
      .config = inputs, .layer = config.layers.begin + layer, .quantize = quantize_gate});
  // Every rank computes it whole: it is small beside a sync.
  program.add(
      Products{.input = BufferId::layer_gate, .products = {{&output, BufferId::partial, hidden}}});
  program.add(FinishPartial{.weights = &output_norm, .config = config.norm, .scale = 1.0f});
}

void LayerProjection::add_slots(const ShardConfig& config, Slots& slots) {
  const LayerInputsConfig& inputs = *config.layer_inputs;
  slots.add("layer_projection", inputs.width(), config.hidden_size, projection);
  norm.add_slots(config.norm, "layer_projection_norm", inputs.size, slots);
}

void LayerProjection::compile(const ShardConfig& config, Program& program) const {
  const size_t width = config.layer_inputs->width();
  const bool quantize = is_quantized(projection.type());
  program.size_buffer(BufferId::normed, config.hidden_size, quantize);
  program.size_buffer(BufferId::layer_projected, width);
  program.add(Norm{.weights = nullptr, .config = config.norm, .add = false, .quantize = quantize});
  program.add(Products{.input = BufferId::normed,
                       .products = {{&projection, BufferId::layer_projected, width}}});
  program.add(
      JoinLayerInputs{.config = *config.layer_inputs, .weights = &norm, .norm = config.norm});
}

Access JoinLayerInputs::access() const {
  return {.reads = {BufferId::layer_projected, BufferId::layer_inputs},
          .writes = {BufferId::layer_projected, BufferId::layer_inputs},
          .division = Division::rows};
}

void JoinLayerInputs::run(Pass& pass, size_t thread) const {
  const size_t width = config.width();
  const Activations projected = pass.buffers[BufferId::layer_projected].of_width(width);
  const Activations& inputs = pass.buffers[BufferId::layer_inputs];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    float* from = projected.row(r);
    float* to = inputs.row(r) + inputs.columns - width;
    for (size_t i = 0; i < width; ++i) from[i] *= config.projection_scale;
    for (size_t i = 0; i < width; i += config.size)
      weights->apply(pass.kernels, norm, from + i, from + i);
    for (size_t i = 0; i < width; ++i)
      to[i] = (from[i] + to[i] * config.embedding_scale) * config.sum_scale;
  }
}

Access GateLayerInput::access() const {
  return {.reads = {BufferId::layer_gate, BufferId::layer_inputs},
          .writes = {BufferId::layer_gate},
          .division = Division::rows};
}

void GateLayerInput::run(Pass& pass, size_t thread) const {
  const size_t size = config.size;
  const Activations gate = pass.buffers[BufferId::layer_gate].of_width(size);
  const Activations& inputs = pass.buffers[BufferId::layer_inputs];
  const auto function = pass.kernels.activate[static_cast<size_t>(config.activation)];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    const float* own = inputs.row(r) + inputs.columns - config.width() + layer * size;
    function(gate.row(r), own, size);
    if (quantize) quantize_columns(pass.kernels, gate, r, 0, size);
  }
}

}  // namespace hearth
