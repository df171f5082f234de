#include "layers/output.h"

#include <algorithm>
#include <cmath>

#include "shard/pass.h"

namespace hearth {

void Output::add_slots(const ShardConfig& config, Slots& slots) {
  norm.add_slots(config.norm, "norm", config.hidden_size, slots);
  if (!config.head_from_embedding) slots.add("head", config.vocab.size(), config.hidden_size, head);
  if (config.head_bias) slots.add("head_bias", config.vocab.size(), bias);
}

void Output::compile(const ShardConfig& config, const Matrix& embedding, Program& program) const {
  const Matrix& weight = config.head_from_embedding ? embedding : head;
  const bool quantize = is_quantized(weight.type());
  program.size_buffer(BufferId::normed, config.hidden_size, quantize);
  program.begin_output();
  program.add(OutputNorm{.weights = &norm, .config = config.norm, .quantize = quantize});
  program.add(Products{.input = BufferId::normed,
                       .products = {{&weight, BufferId::logits, config.vocab.size(),
                                     config.head_bias ? &bias : nullptr}},
                       .output_rows_only = true});
  if (config.logit_scale == 1.0f && config.logit_softcap == 0.0f) return;
  program.add(FinishLogits{.scale = config.logit_scale, .softcap = config.logit_softcap});
}

Access FinishLogits::access() const {
  return {.reads = {BufferId::logits}, .writes = {BufferId::logits}, .division = Division::other};
}

void FinishLogits::run(Pass& pass, size_t thread) const {
  const Activations& logits = pass.buffers[BufferId::logits];
  const size_t count = pass.batch.output_rows().size() * logits.columns;
  const auto [begin, end] = pass.part(count, thread);
  for (size_t i = begin; i < end; ++i) {
    float& each = logits.x[i];
    each *= scale;
    if (softcap > 0.0f) each = softcap * std::tanh(each / softcap);
  }
}

}  // namespace hearth
