// A gated feed-forward: down (silu(gate x) * (up x)).
#pragma once

#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/shard.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

struct FeedForward {
  std::vector<float> norm;
  Matrix gate, up, down;

  // `prefix`: of the block's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots);
  // Ends with this rank's part in `partial`.
  void compile(const ShardConfig& config, Program& program) const;
};

}  // namespace hearth
