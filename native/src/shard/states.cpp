#include "shard/states.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace hearth {

SequenceStates::SequenceStates(const StateShape& shape) {
  for (size_t floats : shape.floats) {
    offsets_.push_back(floats_);
    floats_ += floats;
  }
  if (floats_ > 0) slots_.resize(shape.slots);
}

void SequenceStates::check(std::span<const SequenceStep> sequences) const {
  if (floats_ == 0) return;
  std::vector<bool> used(slots_.size());
  for (const SequenceStep& sequence : sequences) {
    const std::string name = "slot " + std::to_string(sequence.slot);
    if (sequence.slot >= slots_.size())
      throw std::invalid_argument(name + " of " + std::to_string(slots_.size()));
    if (used[sequence.slot]) throw std::invalid_argument(name + " has two sequences in one step");
    used[sequence.slot] = true;
    const size_t position = slots_[sequence.slot].position;
    if (sequence.position == 0 || sequence.position == position) continue;
    throw std::invalid_argument(
        name + " has " +
        (position == kUnknown ? "no state"
                              : "the state after " + std::to_string(position) + " positions") +
        ", its sequence goes on from position " + std::to_string(sequence.position));
  }
}

void SequenceStates::begin(std::span<const SequenceStep> sequences) {
  if (floats_ == 0) return;
  for (const SequenceStep& sequence : sequences) {
    Slot& slot = slots_[sequence.slot];
    slot.position = kUnknown;
    if (slot.memory.size() == 0) {
      slot.memory = Buffer(slot_bytes());
      ++allocated_;
    } else if (sequence.position == 0) {
      std::memset(slot.memory.data(), 0, slot_bytes());
    }
  }
}

void SequenceStates::end(std::span<const SequenceStep> sequences) {
  if (floats_ == 0) return;
  for (const SequenceStep& sequence : sequences)
    slots_[sequence.slot].position = sequence.position + sequence.rows;
}

void SequenceStates::copy(uint32_t from, uint32_t to, size_t position) {
  if (floats_ == 0) return;
  if (from >= slots_.size() || to >= slots_.size()) {
    throw std::invalid_argument("slot " + std::to_string(std::max(from, to)) + " of " +
                                std::to_string(slots_.size()));
  }
  if (slots_[from].position != position) {
    throw std::invalid_argument("slot " + std::to_string(from) + " does not hold the state after " +
                                std::to_string(position) + " positions");
  }
  if (from == to) return;
  Slot& slot = with_memory(to);
  std::memcpy(slot.memory.data(), slots_[from].memory.data(), slot_bytes());
  slot.position = position;
}

std::span<const uint8_t> SequenceStates::content(uint32_t slot, size_t position) const {
  if (floats_ == 0) return {};
  if (slot >= slots_.size() || slots_[slot].position != position) {
    throw std::invalid_argument("slot " + std::to_string(slot) + " does not hold the state after " +
                                std::to_string(position) + " positions");
  }
  return {slots_[slot].memory.data(), slot_bytes()};
}

void SequenceStates::replace(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  if (bytes.size() != slot_bytes()) {
    throw std::invalid_argument(std::to_string(bytes.size()) + " bytes for a state of " +
                                std::to_string(slot_bytes()));
  }
  if (floats_ == 0) return;
  Slot& target = with_memory(slot);
  std::memcpy(target.memory.data(), bytes.data(), bytes.size());
  target.position = position;
}

SequenceStates::Slot& SequenceStates::with_memory(uint32_t number) {
  if (number >= slots_.size()) {
    throw std::invalid_argument("slot " + std::to_string(number) + " of " +
                                std::to_string(slots_.size()));
  }
  Slot& slot = slots_[number];
  if (slot.memory.size() == 0) {
    slot.memory = Buffer(slot_bytes());
    ++allocated_;
  }
  return slot;
}

void SequenceStates::release() {
  for (Slot& slot : slots_) slot = {};
  allocated_ = 0;
}

}  // namespace hearth
