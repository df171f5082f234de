// Products of matrices, and the feed-forward.
#include <algorithm>
#include <string>

#include "vulkan/recording.h"

namespace hearth::vulkan {
namespace {

void product(Recording& recording, const StepBuffer& input, const Matrix& weight,
             size_t weight_rows, const std::vector<float>* bias, const StepBuffer& output,
             size_t stride, size_t rows) {
  const bool blocks = is_quantized(weight.type());
  Arguments arguments;
  arguments.at(recording.weights.of(weight))
      .at(blocks ? input.q : input.x)
      .at(input.scales)
      .at(output.x)
      .at(bias != nullptr ? recording.weights.of(*bias) : 0)
      .number(weight.columns())
      .number(weight_rows)
      .number(rows)
      .number(stride == 0 ? weight_rows : stride)
      .number(weight.group_bytes() / 4)
      .number(size_t{bias != nullptr});
  const uint32_t tokens = tokens_at_once(rows);
  recording.dispatch(products_of(weight.type()), {&tokens, 1}, arguments, groups_of(weight_rows),
                     divide(rows, tokens));
}

}  // namespace

size_t groups_of(size_t weight_rows) {
  const size_t groups = divide(weight_rows, kGroupRows);
  if (groups > kMostGroups) {
    throw DeviceError("a matrix of " + std::to_string(weight_rows) + " rows: at most " +
                      std::to_string(kMostGroups * kGroupRows) + " fit one dispatch");
  }
  return groups;
}

uint32_t tokens_at_once(size_t rows) {
  constexpr size_t kMost = 8;
  uint32_t tokens = 1;
  while (tokens < std::min(rows, kMost)) tokens *= 2;
  return tokens;
}

void Recording::activate(const ActivateRun& run) {
  const bool gated = run.up != 0;
  const GateClamp clamp = run.clamp.value_or(GateClamp{});
  const uint32_t flags =
      (gated ? 1u : 0u) | (run.clamp && gated ? 2u : 0u) | (run.quantize ? 4u : 0u);
  Arguments arguments;
  arguments.at(run.gate.x)
      .at(run.up)
      .at(run.gate.q)
      .at(run.gate.scales)
      .number(run.units)
      .number(run.up_stride)
      .number(static_cast<size_t>(run.activation))
      .number(size_t{flags})
      .number(clamp.limit)
      .number(clamp.factor)
      .number(clamp.offset);
  dispatch(Shader::activate, {}, arguments, divide(run.units, 1024), run.rows);
}

void record(Recording& recording, const Products& operation) {
  const StepShape& shape = recording.shape;
  const size_t rows = operation.output_rows_only ? shape.output_rows : shape.rows;
  for (const Products::Product& each : operation.products) {
    product(recording, recording.buffers[operation.input], *each.weight, each.rows, each.bias,
            recording.buffers[each.output], each.stride, rows);
  }
}

void record(Recording& recording, const ActivatedProducts& operation) {
  const StepBuffer &gate = recording.buffers[BufferId::gate], &up = recording.buffers[BufferId::up];
  const StepBuffer& normed = recording.buffers[BufferId::normed];
  const size_t rows = recording.shape.rows, units = operation.gate.matrix->rows();
  const bool gated = operation.up.matrix != nullptr;
  product(recording, normed, *operation.gate.matrix, units, operation.gate.bias, gate, 0, rows);
  if (gated)
    product(recording, normed, *operation.up.matrix, units, operation.up.bias, up, 0, rows);
  recording.barrier();
  recording.activate({.gate = gate,
                      .up = gated ? up.x : 0,
                      .up_stride = units,
                      .rows = rows,
                      .units = units,
                      .activation = operation.activation,
                      .clamp = operation.clamp,
                      .quantize = operation.quantize});
}

}  // namespace hearth::vulkan
