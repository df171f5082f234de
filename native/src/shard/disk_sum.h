// A sum by which weights that come back from a disk are known to be those that were written.
//
// Sums of ranges add up, in any order, to the sum of all: rows are written as they arrive, and read
// in pieces of another size by several threads. Zeros add nothing, so that gaps need no care. One
// changed word always changes the sum, several do but for one case in 2^64. It does
// not help against changes made on purpose.
#pragma once

#include <cstdint>
#include <span>

namespace hearth {

// The sum of bytes that lie at `offset` of a file; both are multiples of 4.
uint64_t disk_sum(uint64_t offset, std::span<const uint8_t> bytes);

}  // namespace hearth
