// Shared by the algorithms of this folder. Each is written once, over a vector trait `V` that
// every instruction set has in its vec.h:
//
//   Float, Int     a vector of kWidth floats, and of as many int32
//   load, store    from and to memory without alignment; load also widens f16 (uint16_t), bfloat16
//   fma(a, b, c)   a * b + c, rounded once; fnma(a, b, c) = c - a * b
//   max(a, b)      a > b ? a : b in each lane, so that a NaN in a is dropped
//   clamp          keeps NaN
//   round          to the nearest integer, halves to even; to_int does the same
// and constants that say which tiles its registers hold.
//
// The files of an instruction set are compiled for CPUs that the program may not run on. So nothing
// in this folder may have external linkage: the linker could keep one file's copy of a function for
// all of them. Everything lies in the unnamed namespace, and no function template of the standard
// library is called (a build without inlining would emit it). tests/check_linkage.cmake holds that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "hearth/kernels.h"
#include "platform/compiler.h"

namespace hearth {
namespace {

// The upper half of an f32.
struct Bfloat {
  uint16_t bits;
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Vectors that hold the eight rows of a group.
template <typename V>
constexpr size_t kGroupVectors = kGroupRows / V::kWidth;

constexpr size_t kLine = 64;  // bytes of a cache line

// A hint to load a line, harmless past the end of what there is.
inline void prefetch(const void* at) { HEARTH_PREFETCH(at); }
inline void prefetch_l2(const void* at) { HEARTH_PREFETCH_L2(at); }

constexpr size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// A constant as a type. (std::integral_constant has a member function with external linkage.)
template <size_t kValue>
struct Index {
  constexpr operator size_t() const { return kValue; }
};

// step(0), step(1), ... with constants: arrays of vectors stay in registers, and a constant can be
// the index of a lane.
template <size_t kCount, typename Step>
[[gnu::always_inline]] inline void unrolled(Step step) {
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>)
      HEARTH_ALWAYS_INLINE { (step(Index<kIndex>{}), ...); }(std::make_index_sequence<kCount>{});
}

// run(n) with n, at most kMost, as a constant.
template <size_t kMost, typename Run>
void with_constant(size_t n, Run run) {
  if (n == kMost) return run(Index<kMost>{});
  if constexpr (kMost > 1) with_constant<kMost - 1>(n, run);
}

// The sum of an array in its order.
template <size_t kCount>
float sum_in_order(const float (&terms)[kCount]) {
  float sum = 0.0f;
  for (float each : terms) sum += each;
  return sum;
}

// e^x for x up to about 88: the polynomial of the Cephes library after x = n ln 2 + r. Below -87
// the result is near 0. NaN stays NaN.
template <typename V>
typename V::Float exp(typename V::Float x) {
  using Float = typename V::Float;
  x = V::clamp(x, -87.3f, 88.0f);
  const Float n = V::round(V::mul(x, V::broadcast(1.44269504088896341f)));
  Float r = V::fnma(n, V::broadcast(0.693359375f), x);
  r = V::fnma(n, V::broadcast(-2.12194440e-4f), r);
  Float p = V::broadcast(1.9875691500e-4f);
  p = V::fma(p, r, V::broadcast(1.3981999507e-3f));
  p = V::fma(p, r, V::broadcast(8.3334519073e-3f));
  p = V::fma(p, r, V::broadcast(4.1665795894e-2f));
  p = V::fma(p, r, V::broadcast(1.6666665459e-1f));
  p = V::fma(p, r, V::broadcast(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::broadcast(1.0f)));
  return V::mul(p, V::power_of_two(n));
}

}  // namespace
}  // namespace hearth
