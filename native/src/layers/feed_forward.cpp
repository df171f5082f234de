#include "layers/feed_forward.h"

#include <algorithm>

#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {

void FeedForward::add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots) {
  const size_t hidden = config.hidden_size, units = config.ffn.size();
  slots.add(prefix + "ffn_norm", hidden, norm);
  slots.add(prefix + "w1", units, hidden, gate);
  slots.add(prefix + "w3", units, hidden, up);
  slots.add(prefix + "w2", hidden, units, down);
}

void FeedForward::compile(const ShardConfig& config, Program& program) const {
  const size_t hidden = config.hidden_size, units = config.ffn.size();
  const bool quantize_normed = is_quantized(gate.type()) || is_quantized(up.type());
  const bool quantize_gate = is_quantized(down.type());
  program.size_buffer(BufferId::normed, hidden, quantize_normed);
  program.size_buffer(BufferId::gate, units, quantize_gate);
  program.size_buffer(BufferId::up, units);
  program.size_buffer(BufferId::partial, hidden);
  program.add(Norm{
      .weight = &norm, .epsilon = config.norm_epsilon, .add = true, .quantize = quantize_normed});
  program.add(GatedProducts{.gate = &gate, .up = &up, .quantize = quantize_gate});
  program.add(Products{.input = BufferId::gate, .products = {{&down, BufferId::partial, hidden}}});
  program.add(AllReduce{});
}

Access GatedProducts::access() const {
  return {.reads = {BufferId::normed},
          .writes = {BufferId::gate, BufferId::up, BufferId::scratch},
          .division = Division::stealing};
}

void GatedProducts::run(Pass& pass, size_t thread) const {
  const Activations& normed = pass.buffers[BufferId::normed];
  const Activations& gated = pass.buffers[BufferId::gate];
  const Activations& ups = pass.buffers[BufferId::up];
  void* scratch = pass.buffers[BufferId::scratch].row(thread);
  const size_t rows = pass.batch.rows().size(), units = gated.columns;
  const size_t groups = (units + kGroupRows - 1) / kGroupRows;
  // Whole blocks of the next product's input: who made one can quantize it at once.
  const size_t unit = std::max(kBlock / kGroupRows, unit_groups(rows));
  pass.queue.begin_phase(thread);
  while (true) {
    const auto [begin, end] = pass.queue.take(thread, groups, unit);
    if (begin == end) return;
    multiply_groups(pass.kernels, normed, rows, *gate, units, begin, end, gated.x, scratch);
    multiply_groups(pass.kernels, normed, rows, *up, units, begin, end, ups.x, scratch);
    const size_t first = begin * kGroupRows, last = std::min(end * kGroupRows, units);
    for (size_t r = 0; r < rows; ++r) {
      pass.kernels.swiglu(gated.row(r) + first, ups.row(r) + first, last - first);
      if (quantize) quantize_columns(pass.kernels, gated, r, first, last);
    }
  }
}

}  // namespace hearth
