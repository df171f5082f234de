// The blocks of quantized weights: where the bytes of a packed block go, and what they mean. This
// is the definition of every type; kernels/generic/codecs.h has the same for vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "hearth/kernels.h"
#include "hearth/types.h"

namespace hearth {

// 32 columns of a row, of which element c is
//   scale * scales[c / 16] * codes[c] + minimum * minima[c / 16]
// with the products of a half taken first, and rounded.
struct BlockPart {
  float scale, minimum;
  int32_t scales[2], minima[2];
  int8_t codes[kBlock];
};

// Types without a minimum add nothing.
bool has_minimum(Type type);

// A block as the file has it. parts: [block / 32].
void decode_block(Type type, const uint8_t* block, BlockPart* parts);

// Bytes [offset, offset + bytes) of a block, interleaved over eight rows in units of so many bytes.
struct Piece {
  size_t offset, bytes, unit;
};
// The pieces of a block in their order within a packed group: scales, then codes.
std::span<const Piece> pieces_of(Type type);

// Eight rows' blocks to one of a group: kGroupRows times the bytes.
void pack_block(std::span<const Piece> pieces, const uint8_t* const (&from)[kGroupRows],
                size_t offset, uint8_t* to);
// The block of one row of a group.
void unpack_lane(std::span<const Piece> pieces, const uint8_t* from, size_t lane, uint8_t* to);

}  // namespace hearth
