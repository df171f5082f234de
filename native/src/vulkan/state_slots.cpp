#include "vulkan/state_slots.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace hearth::vulkan {

void StateSlots::check(std::span<const SequenceStep> sequences) const {
  std::vector<bool> used(size());
  for (const SequenceStep& sequence : sequences) {
    const std::string name = "slot " + std::to_string(sequence.slot);
    check_range(sequence.slot);
    if (used[sequence.slot]) throw std::invalid_argument(name + " has two sequences in one step");
    used[sequence.slot] = true;
    const size_t position = positions_[sequence.slot];
    if (sequence.position == 0 || sequence.position == position) continue;
    throw std::invalid_argument(
        name + " has " +
        (position == kUnknown ? "no state"
                              : "the state after " + std::to_string(position) + " positions") +
        ", its sequence goes on from position " + std::to_string(sequence.position));
  }
}

void StateSlots::begin(std::span<const SequenceStep> sequences) {
  for (const SequenceStep& sequence : sequences) set(sequence.slot, kUnknown);
}

void StateSlots::end(std::span<const SequenceStep> sequences) {
  for (const SequenceStep& sequence : sequences)
    set(sequence.slot, sequence.position + sequence.rows);
}

void StateSlots::check_range(uint32_t slot) const {
  if (slot < size()) return;
  throw std::invalid_argument("slot " + std::to_string(slot) + " of " + std::to_string(size()));
}

void StateSlots::check_holds(uint32_t slot, size_t position) const {
  if (slot < size() && positions_[slot] == position) return;
  throw std::invalid_argument("slot " + std::to_string(slot) + " does not hold the state after " +
                              std::to_string(position) + " positions");
}

}  // namespace hearth::vulkan
