// The state of recurrent mixers: a slot of a fixed size for each sequence, with the state after the
// positions that it has seen. A slot's memory comes with its first sequence.
//
// A sequence whose last rows are drafts may go back. So its state stays before these rows, and a
// log keeps what the mixers read of each of them (SequenceStep::undo). The next step begins with
// those of them that were accepted: the same operations on the same numbers as in a step without
// drafts. A log is a fraction of a state; a state for each draft would be as many states.
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
  std::vector<size_t> floats;      // of one sequence in each layer; 0: its mixer has no state
  std::vector<size_t> log_floats;  // and of one row of its log
  size_t slots;
  size_t undo;  // rows of a log
};

class SequenceStates {
 public:
  explicit SequenceStates(const StateShape& shape);

  // Of one slot, with its log; 0 where no layer has state, and then nothing here needs slots.
  size_t slot_bytes() const { return (floats_ + log_floats_) * sizeof(float); }
  // Of the slots that have memory now.
  size_t size_bytes() const { return allocated_ * slot_bytes(); }

  // Throws std::invalid_argument for a slot that is out of range, used twice, or does not hold the
  // state after its sequence's position; and for a sequence that is to go back too far.
  void check(std::span<const SequenceStep> sequences) const;
  // Gives the slots memory, and sequences that start a state of zeros. Until `end`, what the slots
  // hold is of no use: a step that fails leaves it in the middle. Throws std::bad_alloc.
  void begin(std::span<const SequenceStep> sequences);
  void end(std::span<const SequenceStep> sequences);
  // Copies the state after `position` positions. Throws std::invalid_argument for slots out of
  // range, or if `from` does not hold that state; std::bad_alloc.
  void copy(uint32_t from, uint32_t to, size_t position);

  // Of what `read` writes, and `replace` reads.
  size_t saved_bytes() const { return log_floats_ > 0 ? kHeader + slot_bytes() : slot_bytes(); }
  // The state of a slot after `position` positions: saved_bytes. Throws std::invalid_argument if it
  // does not hold that.
  void read(uint32_t slot, size_t position, std::span<uint8_t> out) const;
  // Replaces a slot's state. Throws std::invalid_argument for a slot out of range or bytes that
  // `read` did not write, std::bad_alloc.
  void replace(uint32_t slot, size_t position, std::span<const uint8_t> bytes);
  // Gives the memory of all slots back; their content is lost.
  void release();

  // State of a layer, counted from the shard's first.
  float* at(uint32_t slot, size_t layer) { return floats_of(slot) + offsets_[layer]; }
  // Its log: `undo` rows.
  float* log_at(uint32_t slot, size_t layer) {
    return floats_of(slot) + floats_ + log_offsets_[layer];
  }
  size_t undo() const { return undo_; }
  // In a step: rows of the log that its sequence begins with, before its own.
  size_t before(uint32_t slot) const { return slots_[slot].before; }

 private:
  static constexpr size_t kUnknown = std::numeric_limits<size_t>::max();
  // The number of rows of the log that belong to what was saved.
  static constexpr size_t kHeader = sizeof(uint32_t);
  struct Slot {
    Buffer memory;
    size_t settled = kUnknown;  // positions that the state has seen
    size_t logged = 0;          // rows of the log, behind these
    size_t before = 0;          // of a step under way

    bool holds(size_t position) const {
      return settled != kUnknown && settled <= position && position <= settled + logged;
    }
  };
  // Throws std::invalid_argument.
  void check_slot(uint32_t number) const;
  void check_holds(uint32_t number, size_t position) const;
  // A slot with memory. Throws std::invalid_argument, std::bad_alloc.
  Slot& with_memory(uint32_t number);
  float* floats_of(uint32_t slot) { return reinterpret_cast<float*>(slots_[slot].memory.data()); }

  std::vector<size_t> offsets_, log_offsets_;
  size_t floats_ = 0, log_floats_ = 0;  // of a slot
  size_t undo_;
  std::vector<Slot> slots_;
  size_t allocated_ = 0;
};

}  // namespace hearth
