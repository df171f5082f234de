// Recurrent mixers.
#include <algorithm>
#include <numeric>

#include "layers/gated_delta.h"
#include "shard/backend.h"
#include "vulkan/recording.h"

namespace hearth::vulkan {
namespace {

// Columns of the value heads that one workgroup has: see delta_rule.comp.
constexpr size_t kColumnsAtOnce = 32;

size_t keys_of(const GatedDeltaShape& shape) { return shape.key_heads * shape.key_size; }
size_t values_of(const GatedDeltaShape& shape) { return shape.value_heads() * shape.value_size; }

// Bytes from a state's start to a layer.
size_t layer_bytes(const ShardConfig& config, size_t layer) {
  const std::vector<size_t> floats = state_shape(config).floats;
  return std::accumulate(floats.begin(), floats.begin() + static_cast<ptrdiff_t>(layer),
                         size_t{0}) *
         sizeof(float);
}

}  // namespace

size_t scratch_columns(const ShardConfig& config) {
  size_t columns = 0;
  for (const BlockConfig& block : config.kinds) {
    const auto* mixer = std::get_if<GatedDeltaConfig>(&block.mixer);
    if (mixer == nullptr) continue;
    const GatedDeltaShape shape = gated_delta_shape(*mixer);
    columns = std::max(columns, 2 * keys_of(shape) + values_of(shape));
  }
  return columns;
}

void record(Recording& recording, const DeltaRule& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const StepArrays& arrays = recording.arrays;
  const GatedDeltaShape& shape = operation.shape;
  const GatedDelta& own = *operation.weights;
  const size_t rows = recording.shape.rows, sequences = recording.shape.sequences;
  const size_t bytes = layer_bytes(recording.config, operation.layer);
  DeviceWeights& weights = recording.weights;
  const VkDeviceAddress made = buffers[BufferId::scratch].x;
  const uint32_t constants[] = {
      static_cast<uint32_t>(shape.key_heads),  static_cast<uint32_t>(shape.group),
      static_cast<uint32_t>(shape.tile),       static_cast<uint32_t>(shape.key_size),
      static_cast<uint32_t>(shape.value_size), static_cast<uint32_t>(shape.width)};
  Arguments inputs;
  inputs.at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::keys].x)
      .at(buffers[BufferId::values].x)
      .at(weights.of(own.query_filter))
      .at(weights.of(own.key_filter))
      .at(weights.of(own.value_filter))
      .at(made)
      .at(arrays.sequences)
      .at(arrays.of_rows)
      .at(arrays.states)
      .number(bytes)
      .number(static_cast<size_t>(operation.activation));
  recording.dispatch(Shader::delta_inputs, constants, inputs,
                     2 * shape.key_heads + shape.value_heads(), rows);
  recording.barrier();
  Arguments rule;
  rule.at(made)
      .at(buffers[BufferId::mixer_decay].x)
      .at(buffers[BufferId::mixer_beta].x)
      .at(weights.of(own.decay_rate))
      .at(weights.of(own.decay_bias))
      .at(buffers[BufferId::mixed].x)
      .at(arrays.sequences)
      .at(arrays.states)
      .number(bytes);
  recording.dispatch(Shader::delta_rule, constants, rule,
                     shape.value_heads() * divide(shape.value_size, kColumnsAtOnce), sequences);
  Arguments keep;
  keep.at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::keys].x)
      .at(buffers[BufferId::values].x)
      .at(arrays.sequences)
      .at(arrays.states)
      .number(bytes);
  recording.dispatch(Shader::delta_keep, constants, keep,
                     divide(2 * keys_of(shape) + values_of(shape), 64), sequences);
  recording.barrier();
  Arguments finish;
  finish.at(buffers[BufferId::mixed].x)
      .at(buffers[BufferId::mixer_gate].x)
      .at(weights.of(own.mixed_norm.weight))
      .number(shape.value_size)
      .number(operation.epsilon);
  recording.dispatch(Shader::delta_finish, {}, finish, shape.value_heads(), rows);
  if (!operation.quantize) return;
  recording.barrier();
  recording.quantize(buffers[BufferId::mixed], rows, values_of(shape));
}

}  // namespace hearth::vulkan
