// The compute shaders, in SPIR-V.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/types.h"

namespace hearth::vulkan {

// The products come last, by weight type.
enum class Shader : uint32_t {
  norm,
  activate,
  rope,
  attend,
  logits,
  squares,
  latent_store,
  route,
  tiles,
  combine,
  delta_inputs,
  delta_rule,
  delta_keep,
  delta_finish,
  join,
  products,
  grouped_products = products + kTypes
};

constexpr Shader products_of(Type type) {
  return static_cast<Shader>(static_cast<uint32_t>(Shader::products) + index_of(type));
}

// Of one of several matrices.
constexpr Shader grouped_products_of(Type type) {
  return static_cast<Shader>(static_cast<uint32_t>(Shader::grouped_products) + index_of(type));
}

std::span<const uint32_t> code_of(Shader shader);

}  // namespace hearth::vulkan
