// Costs of a sync over the ranks' links, and the choice between the mesh's two ways.
//
// The model: n ranks, each with a part of b bytes as encoded for the wire. A sync costs a latency,
// a time per byte that a rank sends, and a time per byte that it adds. A rank's peers share its
// link.
//   direct     latency + (n - 1) b byte + (n - 1) b add
//   scattered  2 latency + 2 (n - 1) / n b byte + (n - 1) / n b add
// The costs are measured when the mesh opens (MeshLane::measure).
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
