// Shape and state of the gated delta rule (layers/gated_delta.h). Of a sequence and layer, for each
// key head: the products of the last width - 1 positions, oldest first, [width - 1, channels]; then
// the states of its value heads, [group, key_size, value_size].
layout(constant_id = 0) const uint kKeyHeads = 1;
layout(constant_id = 1) const uint kGroup = 1;  // value heads of a key head
layout(constant_id = 2) const uint kTile = 1;   // key heads whose value heads lie by turns
layout(constant_id = 3) const uint kKeySize = 1;
layout(constant_id = 4) const uint kValueSize = 1;
layout(constant_id = 5) const uint kWidth = 1;

const uint kValueHeads = kKeyHeads * kGroup;
const uint kKeys = kKeyHeads * kKeySize;
const uint kValues = kValueHeads * kValueSize;
const uint kChannels = 2 * kKeySize + kGroup * kValueSize;  // of a key head
const uint kEarlier = (kWidth - 1) * kChannels;
const uint kHeadFloats = kEarlier + kGroup * kKeySize * kValueSize;
// Columns of a row of inputs: queries, keys, values.
const uint kInputs = 2 * kKeys + kValues;

// The key head of a value head, and its number among that one's.
uvec2 key_head_of(uint value_head) {
  const uint rest = value_head % (kTile * kGroup);
  return uvec2(value_head / (kTile * kGroup) * kTile + rest % kTile, rest / kTile);
}

uint value_head_of(uint key_head, uint n) {
  return key_head / kTile * kTile * kGroup + n * kTile + key_head % kTile;
}

// The state of a layer, `bytes` bytes from the start of what all layers have.
Floats state_at(uvec2 address, uint bytes) {
  uint carry;
  const uint low = uaddCarry(address.x, bytes, carry);
  return Floats(uvec2(low, address.y + carry));
}
