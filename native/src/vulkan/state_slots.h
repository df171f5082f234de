// Slots of recurrent states on a GPU. (Those of a CPU can also go back: shard/states.h.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "hearth/shard.h"

namespace hearth::vulkan {

// The state that each slot holds: that after so many positions of its sequence, or none.
class StateSlots {
 public:
  explicit StateSlots(size_t count) : positions_(count, kUnknown) {}

  size_t size() const { return positions_.size(); }
  // Throws std::invalid_argument for a slot that is out of range, used twice, or does not hold the
  // state after its sequence's position.
  void check(std::span<const SequenceStep> sequences) const;
  // Until `end`, the sequences' slots hold no state.
  void begin(std::span<const SequenceStep> sequences);
  void end(std::span<const SequenceStep> sequences);
  // Throws std::invalid_argument for a slot that is out of range.
  void check_range(uint32_t slot) const;
  // Throws std::invalid_argument for a slot that does not hold the state after `position`
  // positions.
  void check_holds(uint32_t slot, size_t position) const;
  void set(uint32_t slot, size_t position) { positions_[slot] = position; }
  void clear() { positions_.assign(positions_.size(), kUnknown); }

 private:
  static constexpr size_t kUnknown = std::numeric_limits<size_t>::max();
  std::vector<size_t> positions_;
};

}  // namespace hearth::vulkan
