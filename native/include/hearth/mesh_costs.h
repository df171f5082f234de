// What a sync costs over the ranks' links, and which of the mesh's two ways is the cheaper one.
//
// The model, of n ranks that each have a part of b bytes on the wire (f32, f16 or q80 as it is
// encoded): a latency, a time for each byte that a rank sends, whose link its peers share, and one
// for each byte of others' parts that it adds up.
//   direct     latency + (n - 1) b byte + (n - 1) b add
//   scattered  2 latency + 2 (n - 1) / n b byte + (n - 1) / n b add
// The way is chosen by what is measured over the links when the mesh is opened (MeshLane::measure).
// The arithmetic is on integers, so that ranks of every architecture make the same choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hearth {

inline constexpr size_t kMostRanks = 1024;

// How activations are encoded for a sync.
enum class WireType : uint8_t { f32, f16, q80 };

// Throws std::invalid_argument naming the types there are.
WireType parse_wire_type(std::string_view name);

struct LinkCosts {
  uint64_t latency_ns;  // until all ranks have a few bytes of each other
  uint64_t byte_ps;     // picoseconds for each byte that a rank sends
  uint64_t add_ps;      // and for each that it adds up

  bool operator==(const LinkCosts&) const = default;
};

// The same within limits that the arithmetic here is safe in: measurements come from other ranks.
LinkCosts bounded(LinkCosts costs);

// The largest part that is to go direct, in bytes on the wire; 2 to kMostRanks ranks. Without end
// between two ranks that round for the wire: scattered, the sum would be rounded once more to save
// nothing.
uint64_t direct_bytes(size_t ranks, WireType wire, LinkCosts costs);

}  // namespace hearth
