#include "sampling/gumbel.h"

namespace hearth {
namespace {

// ln x for normal x > 0: x = m 2^e with m in [1/2, 1), ln m = 2 artanh((m - 1) / (m + 1)) after m
// is brought to [sqrt(1/2), sqrt(2)).
double log_of(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  auto exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1022);
  double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3fe0000000000000u);
  if (m < 0.70710678118654752) {
    m *= 2.0;
    exponent -= 1.0;
  }
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double sum = 0.0;
  for (int k = 19; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  return exponent * 0.69314718055994531 + 2.0 * s * sum;
}

}  // namespace

double gumbel_of(uint64_t bits) {
  const double v = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  // Where 1 - v would lose its digits: the series of the logarithm.
  const double exponential =
      v < 0x1p-10 ? v * (1.0 + v * (1.0 / 2 + v * (1.0 / 3 + v * (1.0 / 4 + v * (1.0 / 5)))))
                  : -log_of(1.0 - v);
  return -log_of(exponential);
}

double gumbel_noise(uint64_t seed, uint64_t number, uint32_t token) {
  return gumbel_of(RandomBits(seed, number).of(token));
}

}  // namespace hearth
