// The residual stream and its norms.
#include <algorithm>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

void add_partial(Pass& pass, size_t thread) {
  const Activations& residual = pass.buffers[BufferId::residual];
  const Activations& partial = pass.buffers[BufferId::partial];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r)
    pass.kernels.add(residual.row(r), partial.row(r), residual.columns);
}

}  // namespace

bool leaves_partial(const ShardConfig& config, const BlockConfig& block) {
  return !block.layer_scale && !config.layer_inputs;
}

void add_finish_partial(const ShardConfig& config, const BlockConfig& block,
                        const NormWeights& weights, Program& program) {
  if (!block.output_norms && block.residual_scale == 1.0f) return;
  program.add(FinishPartial{.weights = block.output_norms ? &weights : nullptr,
                            .config = config.norm,
                            .scale = block.residual_scale});
}

Access AddPartial::access() const {
  return {.reads = {BufferId::residual, BufferId::partial},
          .writes = {BufferId::residual},
          .division = Division::rows};
}

void AddPartial::run(Pass& pass, size_t thread) const {
  add_partial(pass, thread);
  if (scale == nullptr) return;
  const Activations& residual = pass.buffers[BufferId::residual];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    for (size_t i = 0; i < residual.columns; ++i) residual.row(r)[i] *= scale->front();
  }
}

Access FinishPartial::access() const {
  return {.reads = {BufferId::partial}, .writes = {BufferId::partial}, .division = Division::rows};
}

void FinishPartial::run(Pass& pass, size_t thread) const {
  const Activations& partial = pass.buffers[BufferId::partial];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    float* row = partial.row(r);
    if (weights != nullptr) weights->apply(pass.kernels, config, row, row);
    if (scale == 1.0f) continue;
    for (size_t i = 0; i < partial.columns; ++i) row[i] *= scale;
  }
}

Access AddTwoResults::access() const {
  return {.reads = {BufferId::two_results},
          .writes = {BufferId::two_results, BufferId::partial},
          .division = Division::rows};
}

void AddTwoResults::run(Pass& pass, size_t thread) const {
  const Activations& partial = pass.buffers[BufferId::partial];
  const size_t columns = partial.columns;
  const Activations both = pass.buffers[BufferId::two_results].of_width(2 * columns);
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    float* row = both.row(r);
    first->apply(pass.kernels, config, row, partial.row(r));
    second->apply(pass.kernels, config, row + columns, row + columns);
    pass.kernels.add(partial.row(r), row + columns, columns);
  }
}

Access Norm::access() const {
  Access access = {
      .reads = {BufferId::residual}, .writes = {BufferId::normed}, .division = Division::rows};
  if (add) {
    access.reads = access.reads | BufferSet{BufferId::partial};
    access.writes = access.writes | BufferSet{BufferId::residual};
  }
  return access;
}

void Norm::run(Pass& pass, size_t thread) const {
  if (add) add_partial(pass, thread);
  const Activations& residual = pass.buffers[BufferId::residual];
  const Activations& normed = pass.buffers[BufferId::normed];
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    if (weights != nullptr)
      weights->apply(pass.kernels, config, residual.row(r), normed.row(r));
    else
      std::copy_n(residual.row(r), normed.columns, normed.row(r));
    if (quantize) quantize_columns(pass.kernels, normed, r, 0, normed.columns);
  }
}

Access OutputNorm::access() const {
  return {.reads = {BufferId::residual}, .writes = {BufferId::normed}, .division = Division::other};
}

void OutputNorm::run(Pass& pass, size_t thread) const {
  const Activations& residual = pass.buffers[BufferId::residual];
  const Activations& normed = pass.buffers[BufferId::normed];
  const auto output_rows = pass.batch.output_rows();
  const auto [begin, end] = pass.part(output_rows.size(), thread);
  for (size_t i = begin; i < end; ++i) {
    weights->apply(pass.kernels, config, residual.row(output_rows[i]), normed.row(i));
    if (quantize) quantize_columns(pass.kernels, normed, i, 0, normed.columns);
  }
}

}  // namespace hearth
