// Activations to int8 in blocks of 32, as Kernels::quantize has it, by a workgroup of 256 threads
// each of which holds four columns. All threads call it.
shared uint largest_of[256];

void quantize4(vec4 x, bool inside, uint row, uint columns, uint column, Words q, Floats scales) {
  // Compared as bits, in which infinity is above every number and NaN above infinity.
  const uvec4 bits = inside ? floatBitsToUint(x) & 0x7fffffffu : uvec4(0);
  const uint thread = gl_LocalInvocationID.x;
  barrier();
  largest_of[thread] = max(max(bits.x, bits.y), max(bits.z, bits.w));
  barrier();
  uint top = 0;
  for (uint i = 0; i < 8; ++i) top = max(top, largest_of[(thread & ~7u) + i]);
  if (!inside) return;
  const bool finite = top < kInfinity;
  const float largest = uintBitsToFloat(top);
  const float inverse = finite && largest >= kSmallestQuantized ? 127.0 / largest : 0.0;
  uint packed = 0;
  for (uint i = 0; i < 4; ++i) {
    const int code = finite ? int(roundEven(x[i] * inverse)) : 0;
    packed |= (uint(code) & 255u) << (8 * i);
  }
  q.at[(row * columns + column) / 4] = packed;
  if (thread % 8 == 0)
    scales.at[row * (columns / kBlock) + column / kBlock] =
        finite ? largest / 127.0 : uintBitsToFloat(0x7fc00000u);
}
