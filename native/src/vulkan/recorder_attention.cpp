// Attention of both kinds: its norms and rotation, the KV cache, softmax.
#include <algorithm>

#include "layers/attention.h"
#include "shard/backend.h"
#include "vulkan/recording.h"

namespace hearth::vulkan {
namespace {

// Workgroups among which the positions of a step are divided: as many as keep a large GPU busy.
constexpr size_t kMostDivided = 256;
// Queries of a workgroup, in its shared memory.
constexpr size_t kMostQueryFloats = 1536;

// See attend.comp.
enum class AttendPass : uint8_t { whole, parts, merge };

// Constants of all shaders that reach the KV cache: see kv.glsl.
std::vector<uint32_t> head_constants(const ShardConfig& config, const AttentionShape& shape) {
  const size_t page = config.page_size;
  return {static_cast<uint32_t>(shape.heads),
          static_cast<uint32_t>(shape.kv_heads),
          static_cast<uint32_t>(shape.key_size),
          static_cast<uint32_t>(shape.value_size),
          static_cast<uint32_t>(page),
          static_cast<uint32_t>(divide(page, kKeySlots) * kKeySlots),
          static_cast<uint32_t>(config.kv_type)};
}

// Bytes from a page's start to a layer.
size_t layer_bytes(const ShardConfig& config, size_t layer) {
  const KvShape shape = kv_shape(config);
  size_t bytes = 0;
  for (size_t before = 0; before < layer; ++before) {
    const KvLayer& each = shape.layers[before];
    bytes += each.kv_heads *
             kv_head_bytes(config.kv_type, each.key_size, each.value_size, config.page_size);
  }
  return bytes;
}

VkDeviceAddress factors_of(const Recording& recording, size_t layer) {
  const StepArrays& arrays = recording.arrays;
  return arrays.factors + recording.config.kind_of_layer[layer] * arrays.most_rows * sizeof(float);
}

}  // namespace

void record(Recording& recording, const SumSquares& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const AttentionShape& shape = operation.shape;
  Arguments arguments;
  arguments.at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::keys].x)
      .at(buffers[BufferId::row_squares].x)
      .number(shape.heads * shape.key_size)
      .number(shape.kv_heads * shape.key_size)
      .number(operation.first_counted * shape.key_size)
      .number(operation.counted * shape.key_size);
  recording.dispatch(Shader::squares, {}, arguments, 2, recording.shape.rows);
}

void record(Recording& recording, const RopeAndStore& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const StepArrays& arrays = recording.arrays;
  const AttentionShape& shape = operation.shape;
  const bool normed = operation.query_norm != nullptr;
  const auto& row_norm = operation.row_norm;
  const auto width = [&](size_t heads) { return static_cast<float>(heads * shape.key_size); };
  Arguments arguments;
  arguments.at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::keys].x)
      .at(buffers[BufferId::values].x)
      .at(arrays.cosines)
      .at(arrays.sines)
      .at(factors_of(recording, operation.layer))
      .at(arrays.places)
      .at(arrays.pages)
      .at(normed ? recording.weights.of(operation.query_norm->weight) : 0)
      .at(normed && operation.store ? recording.weights.of(operation.key_norm->weight) : 0)
      .at(buffers[BufferId::row_squares].x)
      .number(layer_bytes(recording.config, operation.layer))
      .number(operation.first_pair)
      .number(operation.pairs)
      .number(arrays.angles)
      .number(operation.epsilon)
      .number(operation.scale)
      .number(row_norm ? width(row_norm->heads) : 0.0f)
      .number(row_norm ? width(row_norm->kv_heads) : 0.0f)
      .number(size_t{(normed && !row_norm ? 1u : 0u) | (operation.value_norm != nullptr ? 2u : 0u) |
                     (operation.keys_as_values ? 4u : 0u) | (row_norm ? 8u : 0u)});
  recording.dispatch(Shader::rope, head_constants(recording.config, shape), arguments,
                     shape.heads + (operation.store ? shape.kv_heads : 0), recording.shape.rows);
}

void record(Recording& recording, const LatentStore& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const StepArrays& arrays = recording.arrays;
  const LatentAttentionConfig& config = operation.config;
  const size_t heads = config.heads.size(), rows = recording.shape.rows;
  Arguments arguments;
  arguments.at(buffers[BufferId::full_queries].x)
      .at(buffers[BufferId::head_queries].x)
      .at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::keys].x)
      .at(arrays.cosines)
      .at(arrays.sines)
      .at(arrays.places)
      .at(arrays.pages)
      .at(recording.weights.of(operation.latent_norm->weight))
      .number(layer_bytes(recording.config, operation.layer))
      .number(config.nope_size)
      .number(operation.first_pair)
      .number(operation.pairs)
      .number(arrays.angles)
      .number(operation.epsilon)
      .number(config.scale);
  // The key has no values beside it: they are its own first elements.
  AttentionShape shape = {heads, 1, config.kv_rank + config.rope_size, config.kv_rank};
  recording.dispatch(Shader::latent_store, head_constants(recording.config, shape), arguments,
                     heads + 1, rows);
  if (!operation.quantize) return;
  recording.barrier();
  recording.quantize(buffers[BufferId::head_queries], heads * rows, config.nope_size);
}

size_t part_floats(const ShardConfig& config) {
  size_t largest = 0;
  for (const BlockConfig& block : config.kinds) {
    if (const auto shape = attention_shape(block.mixer))
      largest = std::max(largest, shape->value_size);
  }
  return kMostDivided * (2 + largest);
}

void record(Recording& recording, const Attend& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const StepArrays& arrays = recording.arrays;
  const AttentionShape& shape = operation.shape;
  const size_t rows = recording.shape.rows;
  Arguments arguments;
  arguments.at(buffers[BufferId::queries].x)
      .at(buffers[BufferId::mixed].x)
      .at(buffers[BufferId::mixer_gate].x)
      .at(operation.sinks != nullptr ? recording.weights.of(*operation.sinks) : 0)
      .at(arrays.places)
      .at(arrays.pages)
      .at(arrays.parts)
      .number(layer_bytes(recording.config, operation.layer))
      .number(operation.window)
      .number(operation.softcap)
      .number(size_t{(operation.sinks != nullptr ? 1u : 0u) | (operation.gate ? 2u : 0u) |
                     (operation.latent ? 4u : 0u)})
      .number(rows)
      .number(arrays.most_chunks);
  const auto attend = [&](size_t of_workgroup, size_t divisions, AttendPass pass) {
    std::vector<uint32_t> constants = head_constants(recording.config, shape);
    for (const size_t each : {of_workgroup, divisions, static_cast<size_t>(pass)})
      constants.push_back(static_cast<uint32_t>(each));
    recording.dispatch(Shader::attend, constants, arguments, shape.heads * divisions,
                       divide(rows, of_workgroup));
  };
  const size_t items = shape.heads * rows;
  if (recording.shape.prompt) {
    attend(std::clamp<size_t>(kMostQueryFloats / shape.key_size, 1, kPromptRows), 1,
           AttendPass::whole);
  } else if (recording.shape.divided && 2 * items <= kMostDivided) {
    attend(1, std::min(kMostDivided / items, arrays.most_chunks), AttendPass::parts);
    recording.barrier();
    attend(1, 1, AttendPass::merge);
  } else {
    attend(1, 1, AttendPass::whole);
  }
  if (!operation.quantize) return;
  recording.barrier();
  const StepBuffer& mixed = buffers[BufferId::mixed];
  if (operation.latent)
    recording.quantize(mixed, shape.heads * rows, shape.value_size);
  else
    recording.quantize(mixed, rows, shape.heads * shape.value_size);
}

}  // namespace hearth::vulkan
