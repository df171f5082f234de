// Pages of the KV cache, laid out as the CPU's: of each layer and KV head keys [key_size, stride],
// then values [page_size, value_size]. In q80 each is int8, then the scales of its blocks of 32:
// [key_size / 32, stride] and [page_size, value_size / 32].
#extension GL_EXT_shader_16bit_storage : require
layout(constant_id = 2) const uint kKeySize = 1;
layout(constant_id = 3) const uint kValueSize = 1;
layout(constant_id = 4) const uint kPageSize = 1;
layout(constant_id = 5) const uint kStride = 1;
layout(constant_id = 6) const uint kKvType = 0;  // of hearth::KvType

const uint kHalves = 1, kBytes = 2;
const uint kElementBytes = kKvType == kBytes ? 1 : kKvType == kHalves ? 2 : 4;
const uint kKeysBytes = kStride * (kKeySize * kElementBytes +
                                   (kKvType == kBytes ? kKeySize / kBlock * 4 : 0));
const uint kHeadBytes = kKeysBytes + kPageSize * (kValueSize * kElementBytes +
                                                  (kKvType == kBytes ? kValueSize / kBlock * 4 : 0));

layout(buffer_reference, std430, buffer_reference_align = 4) buffer PageWords { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer PageFloats { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer PageHalves { float16_t at[]; };

// Element `index` of what starts `bytes` bytes into a page; `scale`: that of its block, of the
// scales behind `count` elements.
float load(uvec2 page, uint bytes, uint index, uint count, uint scale) {
  if (kKvType == kHalves) return float(PageHalves(page).at[bytes / 2 + index]);
  if (kKvType != kBytes) return PageFloats(page).at[bytes / 4 + index];
  const uint word = PageWords(page).at[(bytes + index) / 4];
  return float(bitfieldExtract(int(word), int(8 * (index % 4)), 8)) *
         PageFloats(page).at[(bytes + count) / 4 + scale];
}

// Of the head that starts `at` bytes into a page.
float load_key(uvec2 page, uint at, uint element, uint slot) {
  return load(page, at, element * kStride + slot, kKeySize * kStride,
              element / kBlock * kStride + slot);
}

float load_value(uvec2 page, uint at, uint slot, uint element) {
  return load(page, at + kKeysBytes, slot * kValueSize + element, kPageSize * kValueSize,
              slot * (kValueSize / kBlock) + element / kBlock);
}

// Values too large for f16 become its largest number; NaN stays. top: of q80, the largest
// magnitude of the block in bits, as Kernels::quantize has it.
void store(uvec2 page, uint bytes, uint index, uint count, uint scale, float x, uint top) {
  if (kKvType == kHalves) {
    PageHalves(page).at[bytes / 2 + index] = float16_t(isnan(x) ? x : clamp(x, -65504.0, 65504.0));
  } else if (kKvType != kBytes) {
    PageFloats(page).at[bytes / 4 + index] = x;
  } else {
    const bool finite = top < kInfinity;
    const float largest = uintBitsToFloat(top);
    const float inverse = finite && largest >= kSmallestQuantized ? 127.0 / largest : 0.0;
    const uint code = finite ? uint(int(roundEven(x * inverse))) & 255u : 0;
    // Neighbours are other positions', which other workgroups may write now.
    const uint word = (bytes + index) / 4, shift = 8 * (index % 4);
    atomicAnd(PageWords(page).at[word], ~(255u << shift));
    atomicOr(PageWords(page).at[word], code << shift);
    PageFloats(page).at[(bytes + count) / 4 + scale] =
        finite ? largest / 127.0 : uintBitsToFloat(0x7fc00000u);
  }
}

void store_key(uvec2 page, uint at, uint element, uint slot, float x, uint top) {
  store(page, at, element * kStride + slot, kKeySize * kStride, element / kBlock * kStride + slot,
        x, top);
}

void store_value(uvec2 page, uint at, uint slot, uint element, float x, uint top) {
  store(page, at + kKeysBytes, slot * kValueSize + element, kPageSize * kValueSize,
        slot * (kValueSize / kBlock) + element / kBlock, x, top);
}

// The largest magnitude of the block that `element` is in, of what a workgroup shares; 0 where it
// is not needed.
#define TOP_OF(numbers, element, top)                                             \
  uint top = 0;                                                                   \
  if (kKvType == kBytes) {                                                        \
    for (uint e_ = (element) / kBlock * kBlock, n_ = 0; n_ < kBlock; ++n_)        \
      top = max(top, floatBitsToUint(numbers[e_ + n_]) & 0x7fffffffu);            \
  }
