// Products of matrices, and the feed-forward.
#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "vulkan/recording.h"

namespace hearth::vulkan {
namespace {

// Of one dispatch of products.comp.
constexpr size_t kMostMatrices = 3;

struct ProductRun {
  const Matrix* weight;
  size_t weight_rows;
  const std::vector<float>* bias;  // nullptr: none
  VkDeviceAddress y;
  size_t stride;  // columns from one row of y to the next; 0: as many as the weight has rows
};

void dispatch_products(Recording& recording, const StepBuffer& input,
                       std::span<const ProductRun> runs, size_t groups, size_t rows) {
  const Matrix& weight = *runs.front().weight;
  const auto for_each = [&](auto put) {
    for (size_t i = 0; i < kMostMatrices; ++i) put(i < runs.size() ? &runs[i] : nullptr);
  };
  Arguments arguments;
  arguments.at(is_quantized(weight.type()) ? input.q : input.x).at(input.scales);
  for_each([&](const ProductRun* run) {
    arguments.at(run != nullptr ? recording.weights.of(*run->weight) : 0);
  });
  for_each([&](const ProductRun* run) { arguments.at(run != nullptr ? run->y : 0); });
  for_each([&](const ProductRun* run) {
    const bool biased = run != nullptr && run->bias != nullptr;
    arguments.at(biased ? recording.weights.of(*run->bias) : 0);
  });
  arguments.number(weight.columns()).number(rows).number(weight.group_bytes() / 4);
  for_each([&](const ProductRun* run) {
    arguments.number(run != nullptr ? run->weight_rows : size_t{0});
  });
  for_each([&](const ProductRun* run) {
    const size_t of_weight = run != nullptr ? run->weight_rows : 0;
    arguments.number(run != nullptr && run->stride != 0 ? run->stride : of_weight);
  });
  const uint32_t tokens = tokens_at_once(rows);
  const Shader shader =
      products_of(Shader::products, weight.type(), recording.device.has_integer_dot());
  recording.dispatch(shader, {&tokens, 1}, arguments, groups, divide(rows, tokens));
}

// Products of the same rows. Matrices of one type share a dispatch: many small ones leave a GPU
// idle between them.
void multiply(Recording& recording, const StepBuffer& input, std::span<const ProductRun> runs,
              size_t rows) {
  for (size_t first = 0; first < runs.size();) {
    const Matrix& weight = *runs[first].weight;
    size_t end = first + 1, groups = groups_of(runs[first].weight_rows);
    for (; end < runs.size() && end - first < kMostMatrices; ++end) {
      const ProductRun& next = runs[end];
      const size_t more = groups_of(next.weight_rows);
      if (next.weight->type() != weight.type() || next.weight->columns() != weight.columns() ||
          groups + more > kMostGroups)
        break;
      groups += more;
    }
    dispatch_products(recording, input, runs.subspan(first, end - first), groups, rows);
    first = end;
  }
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
  std::vector<ProductRun> runs;
  for (const Products::Product& each : operation.products) {
    runs.push_back({.weight = each.weight,
                    .weight_rows = each.rows,
                    .bias = each.bias,
                    .y = recording.buffers[each.output].x,
                    .stride = each.stride});
  }
  multiply(recording, recording.buffers[operation.input], runs,
           operation.output_rows_only ? shape.output_rows : shape.rows);
}

void record(Recording& recording, const ActivatedProducts& operation) {
  const StepBuffer &gate = recording.buffers[BufferId::gate], &up = recording.buffers[BufferId::up];
  const size_t rows = recording.shape.rows, units = operation.gate.matrix->rows();
  const bool gated = operation.up.matrix != nullptr;
  const ProductRun runs[] = {{operation.gate.matrix, units, operation.gate.bias, gate.x, 0},
                             {operation.up.matrix, units, operation.up.bias, up.x, 0}};
  multiply(recording, recording.buffers[BufferId::normed], std::span(runs).first(gated ? 2 : 1),
           rows);
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
