// Sums over the kThreads threads of a workgroup, which all call it: all get the same.
shared float sums_of[kThreads];

float sum_of_all(float mine) {
  const uint thread = gl_LocalInvocationID.x;
  barrier();
  sums_of[thread] = mine;
  barrier();
  for (uint half_ = kThreads / 2; half_ > 0; half_ /= 2) {
    if (thread < half_) sums_of[thread] += sums_of[thread + half_];
    barrier();
  }
  return sums_of[0];
}
