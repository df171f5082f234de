// The state of recurrent mixers: a slot of a fixed size for each sequence, with the state after the
// positions that it has seen. A slot's memory comes with its first sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "hearth/shard.h"
#include "platform/memory.h"

namespace hearth {

struct StateShape {
  std::vector<size_t> floats;  // of one sequence in each layer; 0: its mixer has no state
  size_t slots;
};

// Which state each slot holds: that after so many positions of its sequence, or none.
class StateSlots {
 public:
  explicit StateSlots(size_t count) : positions_(count, kUnknown) {}

  size_t size() const { return positions_.size(); }
  // As SequenceStates::check.
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

// States in the host's memory.
class SequenceStates {
 public:
  explicit SequenceStates(const StateShape& shape);

  // Of one slot; 0 where no layer has state, and then nothing here needs slots.
  size_t slot_bytes() const { return floats_ * sizeof(float); }
  // Of the slots that have memory now.
  size_t size_bytes() const { return allocated_ * slot_bytes(); }

  // Throws std::invalid_argument for a slot that is out of range, used twice, or does not hold the
  // state after its sequence's position.
  void check(std::span<const SequenceStep> sequences) const;
  // Gives the slots memory, and sequences that start a state of zeros. Until `end`, what the slots
  // hold is of no use: a step that fails leaves it in the middle. Throws std::bad_alloc.
  void begin(std::span<const SequenceStep> sequences);
  void end(std::span<const SequenceStep> sequences);
  // Copies the state after `position` positions. Throws std::invalid_argument for slots out of
  // range, or if `from` does not hold that state; std::bad_alloc.
  void copy(uint32_t from, uint32_t to, size_t position);
  // The state of a slot after `position` positions, slot_bytes of them. Throws
  // std::invalid_argument if it does not hold that.
  std::span<const uint8_t> content(uint32_t slot, size_t position) const;
  // Replaces a slot's state. Throws std::invalid_argument for a slot out of range or another size,
  // std::bad_alloc.
  void replace(uint32_t slot, size_t position, std::span<const uint8_t> bytes);
  // Gives the memory of all slots back; their content is lost.
  void release();

  // State of a layer, counted from the shard's first.
  float* at(uint32_t slot, size_t layer) {
    return reinterpret_cast<float*>(memory_[slot].data()) + offsets_[layer];
  }

 private:
  // A slot with memory. Throws std::bad_alloc.
  Buffer& with_memory(uint32_t number);

  std::vector<size_t> offsets_;
  size_t floats_ = 0;
  StateSlots slots_;
  std::vector<Buffer> memory_;  // of each slot
  size_t allocated_ = 0;
};

}  // namespace hearth
