// Pages of the KV cache, laid out as the CPU's: of each layer and KV head keys [key_size, stride],
// then values [page_size, value_size].
#extension GL_EXT_shader_16bit_storage : require
layout(constant_id = 2) const uint kKeySize = 1;
layout(constant_id = 3) const uint kValueSize = 1;
layout(constant_id = 4) const uint kPageSize = 1;
layout(constant_id = 5) const uint kStride = 1;
layout(constant_id = 6) const bool kHalves = false;  // f16 rather than f32

const uint kElementBytes = kHalves ? 2 : 4;
const uint kKeysBytes = kKeySize * kStride * kElementBytes;
const uint kHeadBytes = kKeysBytes + kPageSize * kValueSize * kElementBytes;

layout(buffer_reference, std430, buffer_reference_align = 4) buffer PageFloats { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer PageHalves { float16_t at[]; };

// Element `index` of what starts `bytes` bytes into a page.
float load(uvec2 page, uint bytes, uint index) {
  if (kHalves) return float(PageHalves(page).at[bytes / 2 + index]);
  return PageFloats(page).at[bytes / 4 + index];
}

// Values too large for f16 become its largest number; NaN stays.
void store(uvec2 page, uint bytes, uint index, float x) {
  if (kHalves)
    PageHalves(page).at[bytes / 2 + index] = float16_t(isnan(x) ? x : clamp(x, -65504.0, 65504.0));
  else
    PageFloats(page).at[bytes / 4 + index] = x;
}
