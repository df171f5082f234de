#include "shard/states.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace hearth {

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

SequenceStates::SequenceStates(const StateShape& shape)
    : floats_(std::accumulate(shape.floats.begin(), shape.floats.end(), size_t{0})),
      slots_(floats_ > 0 ? shape.slots : 0),
      memory_(slots_.size()) {
  size_t before = 0;
  for (size_t floats : shape.floats) {
    offsets_.push_back(before);
    before += floats;
  }
}

void SequenceStates::check(std::span<const SequenceStep> sequences) const {
  if (floats_ > 0) slots_.check(sequences);
}

void SequenceStates::begin(std::span<const SequenceStep> sequences) {
  if (floats_ == 0) return;
  slots_.begin(sequences);
  for (const SequenceStep& sequence : sequences) {
    Buffer& memory = with_memory(sequence.slot);
    if (sequence.position == 0) std::memset(memory.data(), 0, slot_bytes());
  }
}

void SequenceStates::end(std::span<const SequenceStep> sequences) {
  if (floats_ > 0) slots_.end(sequences);
}

void SequenceStates::copy(uint32_t from, uint32_t to, size_t position) {
  if (floats_ == 0) return;
  slots_.check_range(from);
  slots_.check_range(to);
  slots_.check_holds(from, position);
  if (from == to) return;
  std::memcpy(with_memory(to).data(), memory_[from].data(), slot_bytes());
  slots_.set(to, position);
}

std::span<const uint8_t> SequenceStates::content(uint32_t slot, size_t position) const {
  if (floats_ == 0) return {};
  slots_.check_holds(slot, position);
  return {memory_[slot].data(), slot_bytes()};
}

void SequenceStates::replace(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  if (bytes.size() != slot_bytes()) {
    throw std::invalid_argument(std::to_string(bytes.size()) + " bytes for a state of " +
                                std::to_string(slot_bytes()));
  }
  if (floats_ == 0) return;
  slots_.check_range(slot);
  std::memcpy(with_memory(slot).data(), bytes.data(), bytes.size());
  slots_.set(slot, position);
}

Buffer& SequenceStates::with_memory(uint32_t number) {
  Buffer& memory = memory_[number];
  if (memory.size() == 0) {
    memory = Buffer(slot_bytes());
    ++allocated_;
  }
  return memory;
}

void SequenceStates::release() {
  slots_.clear();
  for (Buffer& each : memory_) each = Buffer();
  allocated_ = 0;
}

}  // namespace hearth
