#include "layers/output.h"

namespace hearth {

void Output::add_slots(const ShardConfig& config, Slots& slots) {
  slots.add("norm", config.hidden_size, norm);
  if (!config.head_from_embedding) slots.add("head", config.vocab.size(), config.hidden_size, head);
}

void Output::compile(const ShardConfig& config, const Matrix& embedding, Program& program) const {
  const Matrix& weight = config.head_from_embedding ? embedding : head;
  const bool quantize = is_quantized(weight.type());
  program.size_buffer(BufferId::normed, config.hidden_size, quantize);
  program.begin_output();
  program.add(OutputNorm{.weight = &norm, .epsilon = config.norm_epsilon, .quantize = quantize});
  program.add(Products{.input = BufferId::normed,
                       .products = {{&weight, BufferId::logits, config.vocab.size()}},
                       .output_rows_only = true});
}

}  // namespace hearth
