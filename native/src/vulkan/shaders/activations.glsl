// The functions of hearth::Activation.

// erf by a series of positive terms, and so without cancellation; 1 - erf(4) is below half a unit
// in the last place. (Abramowitz, Stegun: Handbook of mathematical functions, 7.1.6)
float erf(float x) {
  const float size = abs(x);
  if (size >= 4.0) return sign(x);
  float term = size, sum = size;
  for (uint n = 1; n < 64; ++n) {
    term *= 2.0 * size * size / float(2 * n + 1);
    sum += term;
  }
  return sign(x) * min(1.0, 1.1283791671 * exp(-size * size) * sum);
}

float activated(uint activation, float x) {
  switch (activation) {
    case 0: return x / (1.0 + exp(-x));
    case 1: return x / (1.0 + exp(-1.5957691216 * (x + 0.044715 * x * x * x)));
    case 2: return x * (1.0 + erf(x * 0.70710678118)) * 0.5;
    default: return max(x, 0.0) * max(x, 0.0);
  }
}
