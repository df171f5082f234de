// The kernels: the few loops in which all time is spent, as a table of functions. So the fastest
// variant that a CPU can run is chosen once, at run time. src/kernels/scalar is the definition.
// Every other variant gives the same bits for the matrix products and quantization. Where exp is
// involved it agrees within a few units in the last place.
//
// src/kernels/generic has the algorithms of all vector instruction sets, over traits that the
// other folders define. Another instruction set is another trait, a file that makes its table of
// it, and a line in CMakeLists.txt.
//
// Packed matrices (matrix.h) come in groups of eight rows; see there for the bytes of each type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/config.h"
#include "hearth/types.h"

namespace hearth {

inline constexpr size_t kGroupRows = 8;
// Slots of a page whose keys lie together at least: the widest vector of the kernels.
inline constexpr size_t kKeySlots = 8;
// Below this, 127 / magnitude would be infinite.
inline constexpr float kSmallestQuantized = 1e-36f;
// Of gelu_tanh: 2 sqrt(2 / pi), and the factor of the cube.
inline constexpr float kGeluFactor = 1.5957691216f, kGeluCubic = 0.044715f;

// y[t][r] = sum over c of w[r][c] * x[t][c], for a run of groups of eight rows.
struct MatmulArgs {
  const uint8_t* weights;  // first group
  size_t group_bytes;
  size_t groups;
  size_t columns;
  size_t rows;  // rows to write: at most groups * 8
  size_t tokens;
  float* y;  // [tokens, y_stride]
  size_t y_stride;
  // Kernels::matmul_scratch bytes of the calling thread's own, on a border of 64 bytes.
  void* scratch;
};

// Sums of the int8 of a block of activations: columns 0 to 15, and 16 to 31.
struct HalfSums {
  int16_t first, second;
};

// The activations of quantized weights, from Kernels::quantize.
struct QuantizedRows {
  const int8_t* q;       // [tokens, columns]
  const float* scales;   // [tokens, columns / 32]
  const HalfSums* sums;  // [tokens, columns / 32]
};

using MatmulFloats = void (*)(const MatmulArgs&, const float* x);
using MatmulBlocks = void (*)(const MatmulArgs&, const QuantizedRows& x);

// One page of one KV head, for queries that see the same slots of it: those of the heads that share
// the KV head, of one row or of several.
struct AttendArgs {
  const float* q;  // [queries, key_size], already scaled
  // f32 or f16. Keys lie the other way round, so that a vector holds one number of many slots and
  // no score is summed across a vector.
  const void* keys;    // [key_size, stride]
  const void* values;  // [slots, value_size]
  size_t queries, key_size, value_size, slots;
  // At least slots, and a multiple of kKeySlots: what lies behind a row's slots is read, and has no
  // effect.
  size_t stride;
  float* scratch;  // [queries, stride]
  float* shrink;   // [queries]
  // Running softmax (Milakov, Gimelshein: Online normalizer calculation for softmax, 2018).
  float* largest;  // [queries], -inf at first
  float* sum;      // [queries], 0 at first
  float* out;      // [queries, value_size], 0 at first; divided by sum after the last page
  // Scores become softcap * tanh(scores / softcap); 0: they stay (Gemma 2: Improving open language
  // models at a practical size, 2024).
  float softcap = 0.0f;
  // What is read next, for the caches to load meanwhile: this head's part of the next page. Or
  // none.
  const void* next = nullptr;
  size_t next_bytes = 0;
};

// The gated delta rule (Yang, Kautz, Hatamizadeh: Gated delta networks, 2024) of one value head,
// over tokens in their order. Of each token t:
//   state *= decay[t]
//   state += key (beta[t] * (value - state^T key))^T
//   out = state^T query
struct DeltaArgs {
  float* state;          // [key_size, value_size]
  const float* queries;  // [tokens, key_size]
  const float* keys;     // [tokens, key_size]
  const float* values;   // [tokens, value_size]
  const float* decay;    // [tokens]
  const float* beta;     // [tokens]
  size_t tokens, key_size, value_size;
  float* out;  // [tokens, value_size]
};

struct Kernels {
  const char* name;

  // Bytes of scratch memory that a matrix product of any type and shape needs; may be 0.
  size_t matmul_scratch;

  // Activations to int8 in blocks of 32: q = round(x / scale), scale = largest magnitude / 127,
  // sums = those of q, for weights whose codes are unsigned or that have minima. columns % 32 == 0.
  // A block with a number that is not finite gets zeros and the scale NaN, so that every product
  // with it says so; one whose numbers are all below kSmallestQuantized gets zeros.
  void (*quantize)(const float* x, size_t columns, int8_t* q, float* scales, HalfSums* sums);

  // By Type: the products of floats, and those of blocks; nullptr for the others.
  MatmulFloats matmul_floats[kTypes];
  MatmulBlocks matmul_blocks[kTypes];

  // y = x / sqrt(mean(x^2) + epsilon) * weight; y may be x.
  void (*rms_norm)(const float* x, const float* weight, size_t size, float epsilon, float* y);
  // y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias; y may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, size_t size,
                     float epsilon, float* y);
  // x += y
  void (*add)(float* x, const float* y, size_t size);
  // gate = activation(gate) * up, or activation(gate) where up is nullptr; by Activation.
  //   silu          x / (1 + e^-x)
  //   gelu_tanh     x / (1 + e^(-2 sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks, Gimpel: Gaussian
  //                 error linear units, 2016; their approximation by tanh)
  //   gelu          x (1 + erf(x / sqrt(2))) / 2
  //   relu_squared  max(x, 0)^2
  void (*activate[kActivations])(float* gate, const float* up, size_t size);
  // Rotates pairs (i, i + half) of one head; cos, sin: [half].
  void (*rope)(float* head, const float* cos, const float* sin, size_t half);

  void (*delta_rule)(const DeltaArgs&);
  void (*attend_f32)(const AttendArgs&);
  void (*attend_f16)(const AttendArgs&);
  // Values too large for f16 become its largest number, not infinity.
  void (*to_f16)(const float* x, size_t size, uint16_t* out);
  // x = or x += the numbers: f16, or int8 in blocks of 32 with their scales (size % 32 == 0).
  void (*from_f16)(const uint16_t* in, size_t size, float* x, bool add);
  void (*from_q80)(const int8_t* q, const float* scales, size_t size, float* x, bool add);
  // Keys of a page, as AttendArgs wants them: x[i][s] = q[i][s] * scales[i / 32][s] over
  // [head_size, stride]. head_size % 32 == 0, stride % kKeySlots == 0.
  void (*keys_from_q80)(const int8_t* q, const float* scales, size_t head_size, size_t stride,
                        float* x);
};

// The product of weights of any type: x is [tokens, columns], read for floats; q for blocks.
inline void multiply(const Kernels& kernels, Type type, const MatmulArgs& args, const float* x,
                     const QuantizedRows& q) {
  if (is_quantized(type))
    kernels.matmul_blocks[index_of(type)](args, q);
  else
    kernels.matmul_floats[index_of(type)](args, x);
}

extern const Kernels kScalarKernels;
#ifdef HEARTH_HAVE_AVX2
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512Kernels;
#endif
#ifdef HEARTH_HAVE_NEON
extern const Kernels kNeonKernels;
extern const Kernels kDotprodKernels;
extern const Kernels kI8mmKernels;
#endif

}  // namespace hearth
