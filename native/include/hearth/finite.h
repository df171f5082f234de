// Values that are not finite: infinities and NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace hearth {

// True if all of x are finite. Reads the bits, so that compilers use vectors, whatever they assume
// of comparisons.
inline bool all_finite(const float* x, size_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i)
    found |= static_cast<uint32_t>((std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent);
  return found == 0;
}

}  // namespace hearth
