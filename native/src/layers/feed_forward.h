// A feed-forward: down (activation(gate x) * (up x)), or down activation(gate x); or experts, with
// or without a feed-forward of all rows beside them.
//
// Slices of a layer, with shapes [rows, columns]; what is in brackets depends on the config:
//   ffn_norm [1, hidden]   w1 (gate) [units, hidden]   [w3 (up) [units, hidden]]
//   w2 (down) [hidden, units]   [b1, b3 [1, units]]   [b2 [1, hidden]]
//   [ffn_out_norm [1, hidden]]   [ffn_gate [1, hidden]]   and those of layers/experts.h
//   [router_norm, experts_norm, ffn_result_norm, experts_result_norm [1, hidden]: separate norms]
//   [layer_scale [1, 1]]   and those of layers/layer_inputs.h
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/experts.h"
#include "layers/layer_inputs.h"
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
  // Separate ones; see BlockConfig.
  NormWeights router_norm, experts_norm, result_norm, experts_result_norm;
  LayerInput layer_input;
  std::vector<float> layer_scale;

  // `prefix`: of the layer's slices, for example "layers.3.".
  void add_slots(const ShardConfig& config, const BlockConfig& block, const std::string& prefix,
                 Slots& slots);
  // Ends with the sum over all ranks in `partial`, or added; see leaves_partial. `layer` counts
  // from the shard's first.
  void compile(const ShardConfig& config, size_t layer, Program& program) const;

 private:
  void compile_results(const ShardConfig& config, const BlockConfig& block, Program& program) const;
  void compile_separate(const ShardConfig& config, const BlockConfig& block,
                        Program& program) const;
  // stride: columns of a row of `output`.
  void compile_whole(const FeedForwardConfig& shape, BufferId output, size_t hidden, size_t stride,
                     Program& program) const;
  // Quantized copies of what the feed-forward reads.
  bool quantized(const FeedForwardConfig& shape) const;
};

// gate = activation(gate) * up of `size` elements; up: nullptr where it is not gated, and else
// changed too.
void activate(const Kernels& kernels, Activation activation, const std::optional<GateClamp>& clamp,
              float* gate, float* up, size_t size);

}  // namespace hearth
