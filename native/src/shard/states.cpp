#include "shard/states.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace hearth {

SequenceStates::SequenceStates(const StateShape& shape) : undo_(shape.undo) {
  for (size_t floats : shape.floats) {
    offsets_.push_back(floats_);
    floats_ += floats;
  }
  for (size_t floats : shape.log_floats) {
    log_offsets_.push_back(log_floats_);
    log_floats_ += floats * undo_;
  }
  if (floats_ > 0) slots_.resize(shape.slots);
}

void SequenceStates::check(std::span<const SequenceStep> sequences) const {
  if (floats_ == 0) return;
  std::vector<bool> used(slots_.size());
  for (const SequenceStep& sequence : sequences) {
    check_slot(sequence.slot);
    const std::string name = "slot " + std::to_string(sequence.slot);
    if (used[sequence.slot]) throw std::invalid_argument(name + " has two sequences in one step");
    used[sequence.slot] = true;
    const Slot& slot = slots_[sequence.slot];
    if (sequence.position > 0 && !slot.holds(sequence.position)) {
      const std::string settled = std::to_string(slot.settled);
      throw std::invalid_argument(
          name + " has " +
          (slot.settled == kUnknown ? "no state"
           : slot.logged == 0 ? "the state after " + settled + " positions"
                              : "the states after " + settled + " to " +
                                    std::to_string(slot.settled + slot.logged) + " positions") +
          ", its sequence goes on from position " + std::to_string(sequence.position));
    }
    const size_t settled = sequence.position > 0 ? slot.settled : 0;
    const size_t end = sequence.position + sequence.rows;
    if (sequence.undo > undo_ || sequence.undo > end - settled) {
      throw std::invalid_argument(name + " is to go back " + std::to_string(sequence.undo) +
                                  " of " + std::to_string(end - settled) + " positions, at most " +
                                  std::to_string(undo_) + " can be");
    }
  }
}

void SequenceStates::begin(std::span<const SequenceStep> sequences) {
  if (floats_ == 0) return;
  for (const SequenceStep& sequence : sequences) {
    Slot& slot = slots_[sequence.slot];
    const bool fresh = slot.memory.size() == 0;
    slot.before = sequence.position > 0 ? sequence.position - slot.settled : 0;
    slot.settled = kUnknown;
    with_memory(sequence.slot);
    if (sequence.position == 0 && !fresh)
      std::memset(slot.memory.data(), 0, floats_ * sizeof(float));
  }
}

void SequenceStates::end(std::span<const SequenceStep> sequences) {
  if (floats_ == 0) return;
  for (const SequenceStep& sequence : sequences) {
    Slot& slot = slots_[sequence.slot];
    slot.settled = sequence.position + sequence.rows - sequence.undo;
    slot.logged = sequence.undo;
  }
}

void SequenceStates::copy(uint32_t from, uint32_t to, size_t position) {
  if (floats_ == 0) return;
  check_slot(from);
  check_slot(to);
  check_holds(from, position);
  if (from == to) return;
  Slot& target = with_memory(to);
  const Slot& source = slots_[from];
  target.settled = source.settled;
  target.logged = position - source.settled;
  const size_t bytes = target.logged > 0 ? slot_bytes() : floats_ * sizeof(float);
  std::memcpy(target.memory.data(), source.memory.data(), bytes);
}

void SequenceStates::read(uint32_t slot, size_t position, std::span<uint8_t> out) const {
  if (floats_ == 0) return;
  check_holds(slot, position);
  const Slot& source = slots_[slot];
  const auto logged = static_cast<uint32_t>(position - source.settled);
  const size_t header = saved_bytes() - slot_bytes();
  std::memcpy(out.data(), &logged, header);
  std::memcpy(out.data() + header, source.memory.data(), slot_bytes());
}

void SequenceStates::replace(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  if (bytes.size() != saved_bytes()) {
    throw std::invalid_argument(std::to_string(bytes.size()) + " bytes for a state of " +
                                std::to_string(saved_bytes()));
  }
  if (floats_ == 0) return;
  uint32_t logged = 0;
  const size_t header = saved_bytes() - slot_bytes();
  std::memcpy(&logged, bytes.data(), header);
  if (logged > std::min(undo_, position)) {
    throw std::invalid_argument("a state after " + std::to_string(position) + " positions with " +
                                std::to_string(logged) + " of at most " + std::to_string(undo_) +
                                " rows in its log");
  }
  Slot& target = with_memory(slot);
  std::memcpy(target.memory.data(), bytes.data() + header, slot_bytes());
  target.settled = position - logged;
  target.logged = logged;
}

void SequenceStates::check_slot(uint32_t number) const {
  if (number < slots_.size()) return;
  throw std::invalid_argument("slot " + std::to_string(number) + " of " +
                              std::to_string(slots_.size()));
}

void SequenceStates::check_holds(uint32_t number, size_t position) const {
  if (number < slots_.size() && slots_[number].holds(position)) return;
  throw std::invalid_argument("slot " + std::to_string(number) + " does not hold the state after " +
                              std::to_string(position) + " positions");
}

SequenceStates::Slot& SequenceStates::with_memory(uint32_t number) {
  check_slot(number);
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
