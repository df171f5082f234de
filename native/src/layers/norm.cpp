// The residual stream and its norms.
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

Access AddPartial::access() const {
  return {.reads = {BufferId::residual, BufferId::partial},
          .writes = {BufferId::residual},
          .division = Division::rows};
}

void AddPartial::run(Pass& pass, size_t thread) const { add_partial(pass, thread); }

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
    pass.kernels.rms_norm(residual.row(r), weight->data(), normed.columns, epsilon, normed.row(r));
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
    pass.kernels.rms_norm(residual.row(output_rows[i]), weight->data(), normed.columns, epsilon,
                          normed.row(i));
    if (quantize) quantize_columns(pass.kernels, normed, i, 0, normed.columns);
  }
}

}  // namespace hearth
