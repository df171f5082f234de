// The compute shaders, in SPIR-V.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/types.h"

namespace hearth::vulkan {

// Products come last, by weight type; then those with integer dot products, of blocks.
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
  grouped_products = products + kTypes,
  end_of_products = grouped_products + kTypes
};

// The types between the floats; see hearth/types.h.
constexpr size_t kFirstBlocks = index_of(Type::q80),
                 kBlockTypes = index_of(Type::bf16) - kFirstBlocks;

// kind: products, or grouped_products, which are of one of several matrices.
constexpr Shader products_of(Shader kind, Type type, bool integer_dot) {
  size_t first = static_cast<size_t>(kind), number = index_of(type);
  if (integer_dot && is_quantized(type)) {
    first = static_cast<size_t>(Shader::end_of_products);
    number -= kFirstBlocks;
    if (kind == Shader::grouped_products) first += kBlockTypes;
  }
  return static_cast<Shader>(first + number);
}

std::span<const uint32_t> code_of(Shader shader);

}  // namespace hearth::vulkan
