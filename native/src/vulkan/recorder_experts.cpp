// Mixtures of experts, and what else multiplies by one of several matrices.
#include <algorithm>

#include "layers/experts.h"
#include "vulkan/recording.h"

namespace hearth::vulkan {
namespace {

constexpr uint32_t kGather = 1, kBias = 2, kHeads = 4;  // of grouped_products.comp

struct GroupedRun {
  const StepBuffer& input;
  const std::vector<Matrix>& matrices;
  const std::vector<float>* bias = nullptr;  // [matrices, rows of each]
  VkDeviceAddress y = 0;
  size_t stride = 0;  // columns from one row of y to the next
  uint32_t flags = 0;
};

void grouped_products(Recording& recording, const GroupedRun& run, uint32_t tokens, size_t tiles) {
  const Matrix& first = run.matrices.front();
  const bool blocks = is_quantized(first.type());
  Arguments arguments;
  arguments.at(recording.weights.of(run.matrices))
      .at(blocks ? run.input.q : run.input.x)
      .at(run.input.scales)
      .at(run.y)
      .at(run.bias != nullptr ? recording.weights.of(*run.bias) : 0)
      .at(recording.experts().tiles)
      .at(recording.experts().pair_rows)
      .number(first.columns())
      .number(first.rows())
      .number(recording.shape.rows)
      .number(run.stride)
      .number(first.group_bytes() / 4)
      .number(size_t{run.flags | (run.bias != nullptr ? kBias : 0u)});
  const Shader shader =
      products_of(Shader::grouped_products, first.type(), recording.device.has_integer_dot());
  recording.dispatch(shader, {&tokens, 1}, arguments, groups_of(first.rows()), tiles);
}

}  // namespace

ExpertTiles expert_tiles(size_t experts, size_t used, size_t rows) {
  const uint32_t places = tokens_at_once(rows);
  // Each expert has at most one tile that is not full.
  const size_t not_full = places == 1 ? 0 : std::min(rows * used, experts);
  return {places, rows * used / places + not_full};
}

void record(Recording& recording, const Route& operation) {
  const ExpertsConfig& config = operation.config;
  const ChosenExperts& chosen = recording.experts();
  const size_t rows = recording.shape.rows;
  const ExpertTiles tiles = expert_tiles(config.count, config.used, rows);
  const auto vector = [&](const std::vector<float>* each) {
    return each != nullptr ? recording.weights.of(*each) : 0;
  };
  Arguments arguments;
  arguments.at(recording.buffers[BufferId::router].x)
      .at(chosen.choices)
      .at(vector(operation.choice_bias))
      .at(vector(operation.scales))
      .at(chosen.places)
      .at(chosen.pair_rows)
      .at(chosen.tiles)
      .number(config.used)
      .number(config.used_groups)
      .number(config.scale)
      .number(size_t{(config.scores == RouterScores::sigmoid ? 1u : 0u) |
                     (config.normalize ? 2u : 0u) | (operation.choice_bias != nullptr ? 4u : 0u) |
                     (operation.scales != nullptr ? 8u : 0u) | (rows == 1 ? 16u : 0u)});
  const uint32_t constants[] = {static_cast<uint32_t>(config.count),
                                static_cast<uint32_t>(config.groups)};
  recording.dispatch(Shader::route, constants, arguments, rows);
  if (rows == 1) return;
  recording.barrier();
  Arguments of_tiles;
  of_tiles.at(chosen.choices)
      .at(chosen.places)
      .at(chosen.pair_rows)
      .at(chosen.tiles)
      .number(rows)
      .number(config.used)
      .number(size_t{tiles.places})
      .number(tiles.count);
  recording.dispatch(Shader::tiles, {constants, 1}, of_tiles, 1);
}

void record(Recording& recording, const ExpertProducts& operation) {
  const Experts& experts = *operation.experts;
  const FeedForwardConfig& config = operation.config;
  const StepBuffer &gate = recording.buffers[BufferId::expert_gate],
                   &up = recording.buffers[BufferId::expert_up],
                   &normed = recording.buffers[BufferId::normed];
  const size_t rows = recording.shape.rows, units = config.units.size();
  const ExpertTiles tiles = expert_tiles(experts.gate.size(), operation.used, rows);
  const auto multiply = [&](const std::vector<Matrix>& matrices, const std::vector<float>& bias,
                            const StepBuffer& output) {
    grouped_products(recording,
                     {.input = normed,
                      .matrices = matrices,
                      .bias = config.bias ? &bias : nullptr,
                      .y = output.x,
                      .stride = units,
                      .flags = kGather},
                     tiles.places, tiles.count);
  };
  multiply(experts.gate, experts.gate_bias, gate);
  if (config.gated) multiply(experts.up, experts.up_bias, up);
  recording.barrier();
  recording.activate({.gate = gate,
                      .up = config.gated ? up.x : 0,
                      .up_stride = units,
                      .rows = rows * operation.used,
                      .units = units,
                      .activation = config.activation,
                      .clamp = config.clamp,
                      .quantize = operation.quantize});
}

void record(Recording& recording, const ExpertOutputs& operation) {
  const std::vector<Matrix>& down = operation.experts->down;
  const ExpertTiles tiles = expert_tiles(down.size(), operation.used, recording.shape.rows);
  grouped_products(recording,
                   {.input = recording.buffers[BufferId::expert_gate],
                    .matrices = down,
                    .y = recording.buffers[BufferId::expert_output].x,
                    .stride = down.front().rows()},
                   tiles.places, tiles.count);
}

void record(Recording& recording, const Combine& operation) {
  const PerBuffer<StepBuffer>& buffers = recording.buffers;
  const size_t hidden = operation.hidden;
  const StepBuffer& results =
      buffers[operation.separate ? BufferId::two_results : BufferId::partial];
  Arguments arguments;
  arguments.at(buffers[BufferId::expert_output].x)
      .at(recording.experts().choices)
      .at(recording.experts().places)
      .at(operation.bias != nullptr ? recording.weights.of(*operation.bias) : 0)
      .at(buffers[BufferId::ffn_gate].x)
      .at(results.x + (operation.separate ? hidden * sizeof(float) : 0))
      .number(hidden)
      .number(operation.separate ? 2 * hidden : hidden)
      .number(operation.used)
      .number(size_t{(operation.feed_forward ? 1u : 0u) | (operation.gate ? 2u : 0u) |
                     (operation.bias != nullptr ? 4u : 0u)});
  recording.dispatch(Shader::combine, {}, arguments, divide(hidden, 256), recording.shape.rows);
}

void record(Recording& recording, const HeadProducts& operation) {
  const std::vector<Matrix>& matrices = *operation.weights;
  const size_t rows = recording.shape.rows;
  const uint32_t tokens = tokens_at_once(rows);
  grouped_products(recording,
                   {.input = recording.buffers[operation.input],
                    .matrices = matrices,
                    .y = recording.buffers[operation.output].x,
                    .stride = operation.stride,
                    .flags = kHeads},
                   tokens, matrices.size() * divide(rows, tokens));
}

}  // namespace hearth::vulkan
