// A feed-forward: down (activation(gate x) * (up x)), or down activation(gate x); or experts, with
// or without a feed-forward of all rows beside them.
//
// Slices of a layer, with shapes [rows, columns]; what is in brackets depends on the config:
//   ffn_norm [1, hidden]   w1 (gate) [units, hidden]   [w3 (up) [units, hidden]]
//   w2 (down) [hidden, units]   [b1, b3 [1, units]]   [b2 [1, hidden]]
//   [ffn_out_norm [1, hidden]]   [ffn_gate [1, hidden]]   and those of layers/experts.h
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/experts.h"
#include "layers/norm.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

struct FeedForward {
  NormWeights norm, output_norm;
  Matrix gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
  Experts experts;
  Matrix result_gate;  // beside experts

  // `prefix`: of the layer's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const BlockConfig& block, const std::string& prefix,
                 Slots& slots);
  // Ends with the sum over all ranks in `partial`.
  void compile(const ShardConfig& config, const BlockConfig& block, Program& program) const;

 private:
  void compile_whole(const FeedForwardConfig& shape, size_t hidden, Program& program) const;
};

// gate = activation(gate) * up of `size` elements; up: nullptr where it is not gated, and else
// changed too.
void activate(const Kernels& kernels, Activation activation, const std::optional<GateClamp>& clamp,
              float* gate, float* up, size_t size);

}  // namespace hearth
