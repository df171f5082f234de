// Multiplication and addition with one rounding.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace hearth {

// a * b + c by double's arithmetic. The product is exact; the sum is rounded to odd, so that the
// second rounding, to float, is that of the exact sum (Boldo and Melquiond, 2008).
inline float fused_by_doubles(float a, float b, float c) {
  const double product = double{a} * b, sum = product + c;
  const double added = sum - product, lost = (product - (sum - added)) + (c - added);
  auto bits = std::bit_cast<uint64_t>(sum);
  if (lost != 0.0 && std::isfinite(sum) && bits % 2 == 0)
    bits += (lost > 0.0) == (sum > 0.0) ? 1 : -1;
  return static_cast<float>(std::bit_cast<double>(bits));
}

// a * b + c, rounded once.
inline float fused(float a, float b, float c) {
#ifdef _WIN32
  return fused_by_doubles(a, b, c);  // mingw-w64's std::fma rounds twice
#else
  return std::fma(a, b, c);
#endif
}

}  // namespace hearth
