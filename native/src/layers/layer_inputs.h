// Inputs of a layer's own for every row (per-layer embeddings); see LayerInputsConfig.
//
// Slices of a layer, with shapes [rows, columns]:
//   layer_gate [size, hidden]   layer_out [hidden, size]   layer_out_norm [1, hidden]
// And of a shard that has the model's first layer, on every rank:
//   layer_projection [layers * size, hidden]   layer_projection_norm [1, size]
#pragma once

#include <cstddef>
#include <string>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/norm.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

// Of one layer.
struct LayerInput {
  Matrix gate, output;
  NormWeights output_norm;

  void add_slots(const ShardConfig& config, const std::string& prefix, Slots& slots);
  // `layer` counts from the shard's first. Adds what the feed-forward left in `partial`, and leaves
  // its own result there.
  void compile(const ShardConfig& config, size_t layer, Program& program) const;
};

// Of all layers: it makes their inputs before the first one.
struct LayerProjection {
  Matrix projection;
  NormWeights norm;

  void add_slots(const ShardConfig& config, Slots& slots);
  void compile(const ShardConfig& config, Program& program) const;
};

}  // namespace hearth
