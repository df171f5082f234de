// The residual stream, its norms, and what makes int8 of activations.
#include <algorithm>

#include "vulkan/recording.h"

namespace hearth::vulkan {

void Recording::norm(const NormRun& run) {
  uint32_t flags = run.flags;
  if (run.weight != nullptr) flags |= run.bias != nullptr ? kLayer : kRms;
  const size_t stride = run.x_stride == 0 ? run.columns : run.x_stride;
  const bool chosen = (flags & kChosenRows) != 0;
  for (size_t done = 0; done < run.rows; done += kMostGroups) {
    const size_t from = chosen ? 0 : done * stride * sizeof(float);
    const size_t to = done * run.columns;
    Arguments arguments;
    arguments.at(run.x.x + from)
        .at(buffers[BufferId::partial].x + from)
        .at(run.y.x + to * sizeof(float))
        .at(run.weight != nullptr ? weights.of(*run.weight) : 0)
        .at(run.bias != nullptr ? weights.of(*run.bias) : 0)
        .at(run.y.q + to)
        .at(run.y.scales + to / kBlock * sizeof(float))
        .at(arrays.chosen + done * sizeof(uint32_t))
        .number(run.columns)
        .number(stride)
        .number(run.config.epsilon)
        .number(run.factor)
        .number(size_t{flags});
    dispatch(Shader::norm, {}, arguments, std::min(run.rows - done, kMostGroups));
  }
}

void Recording::quantize(const StepBuffer& buffer, size_t rows, size_t columns) {
  norm({.x = buffer, .y = buffer, .flags = kQuantize, .rows = rows, .columns = columns});
}

void record(Recording& recording, const Norm& operation) {
  NormRun run = {
      .x = recording.buffers[BufferId::residual],
      .y = recording.buffers[BufferId::normed],
      .flags = (operation.add ? kAdd : 0u) | (operation.quantize ? kQuantize : 0u),
      .rows = recording.shape.rows,
      .columns = recording.config.hidden_size,
  };
  if (operation.weights != nullptr) run.set(*operation.weights, operation.config);
  recording.norm(run);
}

void record(Recording& recording, const OutputNorm& operation) {
  NormRun run = {
      .x = recording.buffers[BufferId::residual],
      .y = recording.buffers[BufferId::normed],
      .flags = kChosenRows | (operation.quantize ? kQuantize : 0u),
      .rows = recording.shape.output_rows,
      .columns = recording.config.hidden_size,
  };
  run.set(*operation.weights, operation.config);
  recording.norm(run);
}

void record(Recording& recording, const AddPartial& operation) {
  const StepBuffer& residual = recording.buffers[BufferId::residual];
  recording.norm({.x = residual,
                  .y = residual,
                  .flags = kAdd,
                  .rows = recording.shape.rows,
                  .columns = recording.config.hidden_size,
                  .factor = operation.scale != nullptr ? operation.scale->front() : 1.0f});
}

void record(Recording& recording, const FinishPartial& operation) {
  const StepBuffer& partial = recording.buffers[BufferId::partial];
  NormRun run = {
      .x = partial,
      .y = partial,
      .rows = recording.shape.rows,
      .columns = recording.config.hidden_size,
      .factor = operation.scale,
  };
  if (operation.weights != nullptr) run.set(*operation.weights, operation.config);
  recording.norm(run);
}

void record(Recording& recording, const RowNorm& operation) {
  const StepBuffer& buffer = recording.buffers[operation.buffer];
  recording.norm({.x = buffer,
                  .y = buffer,
                  .weight = &operation.weights->weight,
                  .config = {.kind = NormKind::rms, .epsilon = operation.epsilon},
                  .flags = operation.quantize ? kQuantize : 0u,
                  .rows = recording.shape.rows,
                  .columns = operation.weights->weight.size()});
}

void record(Recording& recording, const Quantize& operation) {
  recording.quantize(recording.buffers[operation.buffer], recording.shape.rows, operation.columns);
}

void record(Recording& recording, const AddTwoResults& operation) {
  const StepBuffer &both = recording.buffers[BufferId::two_results],
                   &partial = recording.buffers[BufferId::partial];
  const size_t hidden = recording.config.hidden_size;
  NormRun run = {.x = both,
                 .y = partial,
                 .rows = recording.shape.rows,
                 .columns = hidden,
                 .x_stride = 2 * hidden};
  run.set(*operation.first, operation.config);
  recording.norm(run);
  recording.barrier();
  run.x.x += hidden * sizeof(float);
  run.flags = kAddToResult;
  run.set(*operation.second, operation.config);
  recording.norm(run);
}

void record(Recording& recording, const FinishLogits& operation) {
  const StepBuffer& logits = recording.buffers[BufferId::logits];
  Arguments arguments;
  arguments.at(logits.x).number(logits.columns).number(operation.scale).number(operation.softcap);
  recording.dispatch(Shader::logits, {}, arguments, divide(logits.columns, 256),
                     recording.shape.output_rows);
}

}  // namespace hearth::vulkan
