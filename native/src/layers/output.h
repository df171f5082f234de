// The last layer: final norm and head, which make the logits of the output rows.
#pragma once

#include <vector>

#include "formats/matrix.h"
#include "hearth/shard.h"
#include "layers/norm.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

struct Output {
  NormWeights norm;
  Matrix head;  // empty when the embedding is the head too
  std::vector<float> bias;

  void add_slots(const ShardConfig& config, Slots& slots);
  // Logits go to `logits`. embedding: the head too, when the two are tied.
  void compile(const ShardConfig& config, const Matrix& embedding, Program& program) const;
};

}  // namespace hearth
