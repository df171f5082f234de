// The table of an instruction set, from its vector trait and its integer products.
#pragma once

#include "attend.h"
#include "block_products.h"
#include "delta.h"
#include "elementwise.h"
#include "float_products.h"

namespace hearth {
namespace {

// Bytes of scratch memory that the products of a trait with panels need, whatever the type.
template <typename B, typename V, typename W>
constexpr size_t scratch_bytes() {
  size_t bytes = 0;
  if constexpr (V::kPanelTokens > 0) bytes = sizeof(FloatScratch<W>);
  if constexpr (B::kPanelTokens > 0) {
    if (sizeof(BlockScratch<B>) > bytes) bytes = sizeof(BlockScratch<B>);
  }
  return bytes;
}

// B: the trait of bytes, which names a trait of vectors. V: that of everything else, if another. W:
// that of the tiles of float products.
template <typename B, typename V = typename B::V, typename W = V>
constexpr Kernels kernels_of(const char* name) {
  Kernels kernels = {
      .name = name,
      .matmul_scratch = scratch_bytes<B, V, W>(),
      .quantize = quantize<V>,
      .matmul_floats = {},
      .matmul_blocks = {},
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
  kernels.matmul_floats[static_cast<size_t>(Type::f32)] = matmul_floats<V, W, float>;
  kernels.matmul_floats[static_cast<size_t>(Type::f16)] = matmul_floats<V, W, uint16_t>;
  kernels.matmul_floats[static_cast<size_t>(Type::bf16)] = matmul_floats<V, W, Bfloat>;
  set_blocks<B>(kernels);
  return kernels;
}

}  // namespace
}  // namespace hearth
