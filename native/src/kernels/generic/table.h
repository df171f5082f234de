// The table of an instruction set, from its vector trait and its integer products.
#pragma once

#include "attend.h"
#include "elementwise.h"

namespace hearth {
namespace {

// What each newer instruction set brings: the matrix products.
struct Products {
  void (*matmul_f32)(const MatmulArgs&);
  void (*matmul_f16)(const MatmulArgs&);
  void (*matmul_q80)(const MatmulArgs&);
  void (*matmul_q40)(const MatmulArgs&);
};

template <typename V>
constexpr Kernels table(const char* name, const Products& products) {
  return {
      .name = name,
      .quantize = quantize<V>,
      .matmul_f32 = products.matmul_f32,
      .matmul_f16 = products.matmul_f16,
      .matmul_q80 = products.matmul_q80,
      .matmul_q40 = products.matmul_q40,
      .rms_norm = rms_norm<V>,
      .add = add<V>,
      .swiglu = swiglu<V>,
      .rope = rope<V>,
      .attend_f32 = attend<V, float>,
      .attend_f16 = attend<V, uint16_t>,
      .to_f16 = to_f16<V>,
      .from_f16 = from_f16<V>,
      .from_q80 = from_q80<V>,
      .keys_from_q80 = keys_from_q80<V>,
  };
}

}  // namespace
}  // namespace hearth
