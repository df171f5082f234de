// Inputs of each layer's own.
#include "vulkan/recording.h"

namespace hearth::vulkan {

void record(Recording& recording, const JoinLayerInputs& operation) {
  const LayerInputsConfig& config = operation.config;
  const StepBuffer& projected = recording.buffers[BufferId::layer_projected];
  const size_t rows = recording.shape.rows;
  NormRun run = {.x = projected,
                 .y = projected,
                 .rows = rows * config.layers,
                 .columns = config.size,
                 .factor = config.projection_scale};
  recording.norm(run);
  recording.barrier();
  run.factor = 1.0f;
  run.set(*operation.weights, operation.norm);
  recording.norm(run);
  recording.barrier();
  Arguments arguments;
  arguments.at(projected.x)
      .at(recording.buffers[BufferId::layer_inputs].x)
      .number(config.width())
      .number(config.embedding_scale)
      .number(config.sum_scale);
  recording.dispatch(Shader::join, {}, arguments, divide(config.width(), 256), rows);
}

void record(Recording& recording, const GateLayerInput& operation) {
  const LayerInputsConfig& config = operation.config;
  const VkDeviceAddress inputs = recording.buffers[BufferId::layer_inputs].x;
  recording.activate({.gate = recording.buffers[BufferId::layer_gate],
                      .up = inputs + operation.layer * config.size * sizeof(float),
                      .up_stride = config.width(),
                      .rows = recording.shape.rows,
                      .units = config.size,
                      .activation = config.activation,
                      .quantize = operation.quantize});
}

}  // namespace hearth::vulkan
