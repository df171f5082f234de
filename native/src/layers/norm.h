// The weights of a norm, whose kind and epsilon are the model's.
#pragma once

#include <string>
#include <vector>

#include "hearth/config.h"
#include "hearth/kernels.h"
#include "layers/slots.h"

namespace hearth {

struct NormWeights {
  std::vector<float> weight, bias;

  // Slices "NAME" and, of layer norms, "NAME.bias".
  void add_slots(const NormConfig& config, const std::string& name, size_t size, Slots& slots) {
    slots.add(name, size, weight);
    if (config.bias()) slots.add(name + ".bias", size, bias);
  }

  // y = norm(x); y may be x.
  void apply(const Kernels& kernels, const NormConfig& config, const float* x, float* y) const {
    const size_t size = weight.size();
    if (config.kind == NormKind::rms)
      return kernels.rms_norm(x, weight.data(), size, config.epsilon, y);
    kernels.layer_norm(x, weight.data(), bias.data(), size, config.epsilon, y);
  }
};

class Program;

// True where a block leaves its last result in `partial`, which what follows adds to the residual.
bool leaves_partial(const ShardConfig& config, const BlockConfig& block);

// The block's output norm and residual scale, where it has them.
void add_finish_partial(const ShardConfig& config, const BlockConfig& block,
                        const NormWeights& weights, Program& program);

}  // namespace hearth
