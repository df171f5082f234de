// Experts of a block: their weights and the router's.
//
// Slices of a layer, with shapes [rows, columns]; what is in brackets depends on the config:
//   router [experts, hidden]   [router_bias, choice_bias, expert_scales [1, experts]]
//   experts_w1 (gate) [experts * units, hidden]   [experts_w3 (up) [experts * units, hidden]]
//   experts_w2 (down) [experts * hidden, units]
//   [experts_b1, experts_b3 [1, experts * units]]   [experts_b2 [1, experts * hidden]]
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/program.h"
#include "layers/slots.h"

namespace hearth {

struct Experts {
  Matrix router;
  std::vector<Matrix> gate, up, down;  // of each expert
  std::vector<float> router_bias, choice_bias, scales, gate_bias, up_bias, down_bias;

  void add_slots(const ExpertsConfig& config, size_t hidden, const std::string& prefix,
                 Slots& slots);
  // From `normed` to `choices`.
  void compile_router(const ExpertsConfig& config, Program& program) const;
  // From `normed` and `choices` to what `combine` says, whose experts these are.
  void compile(const ExpertsConfig& config, Combine combine, Program& program) const;
  bool quantized() const;
  // True if a product of the experts' inputs has weights that are not quantized.
  bool reads_floats() const;
};

// The pairs of row and expert of a step, in the order of the experts.
struct ExpertRows {
  std::vector<uint32_t> offsets;  // [experts + 1]: of each expert's first pair
  std::vector<uint32_t> rows;     // of each pair
  std::vector<uint32_t> pairs;    // [rows, used]: the place of each row's pairs

  // Memory for so many; throws std::bad_alloc. The operations allocate none.
  void reserve(size_t experts, size_t count) {
    offsets.resize(experts + 1);
    rows.resize(count);
    pairs.resize(count);
  }
  // The rows of an expert.
  size_t count(size_t expert) const { return offsets[expert + 1] - offsets[expert]; }
};

}  // namespace hearth
