// The table of an instruction set, from its vector trait and its integer products.
#pragma once

#include "attend.h"
#include "block_products.h"
#include "delta.h"
#include "elementwise.h"
#include "float_products.h"

namespace hearth {
namespace {

using MatmulBlocks = void (*)(const MatmulArgs&, const QuantizedRows&);

// Bytes of scratch memory that the products of a trait with panels need, whatever the type.
template <typename V>
constexpr size_t kScratchBytes = V::kPanelTokens == 0 ? 0
                                 : sizeof(FloatScratch) > sizeof(BlockScratch)
                                     ? sizeof(FloatScratch)
                                     : sizeof(BlockScratch);

template <typename V>
constexpr Kernels kernels_of(const char* name, MatmulBlocks matmul_q80, MatmulBlocks matmul_q40) {
  return {
      .name = name,
      .matmul_scratch = kScratchBytes<V>,
      .quantize = quantize<V>,
      .matmul_f32 = matmul_floats<V, float>,
      .matmul_f16 = matmul_floats<V, uint16_t>,
      .matmul_q80 = matmul_q80,
      .matmul_q40 = matmul_q40,
      .rms_norm = rms_norm<V>,
      .layer_norm = layer_norm<V>,
      .add = add<V>,
      .activate = {silu<V>, gelu_tanh<V>, gelu<V>, relu_squared<V>},
      .rope = rope<V>,
      .delta_rule = delta_rule<V>,
      .attend_f32 = attend<V, float>,
      .attend_f16 = attend<V, uint16_t>,
      .to_f16 = to_f16<V>,
      .from_f16 = from_f16<V>,
      .from_q80 = from_q80<V>,
      .keys_from_q80 = keys_from_q80<V>,
  };
}

// The table of a newer instruction set that differs in the products of int8.
[[maybe_unused]] constexpr Kernels with_blocks(Kernels base, const char* name,
                                               MatmulBlocks matmul_q80, MatmulBlocks matmul_q40) {
  base.name = name;
  base.matmul_q80 = matmul_q80;
  base.matmul_q40 = matmul_q40;
  return base;
}

}  // namespace
}  // namespace hearth
