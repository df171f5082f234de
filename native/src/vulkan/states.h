// The states of recurrent mixers in a GPU's memory, laid out as SequenceStates has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "shard/states.h"
#include "vulkan/device.h"
#include "vulkan/state_slots.h"

namespace hearth::vulkan {

class States {
 public:
  States(const Device& device, const StateShape& shape);

  // As SequenceStates'; and they throw DeviceError instead of std::bad_alloc.
  size_t slot_bytes() const { return slot_bytes_; }
  size_t size_bytes() const;
  void check(std::span<const SequenceStep> sequences) const;
  void begin(std::span<const SequenceStep> sequences);
  void end(std::span<const SequenceStep> sequences);
  void copy(uint32_t from, uint32_t to, size_t position);
  void read(uint32_t slot, size_t position, std::span<uint8_t> out) const;
  void write(uint32_t slot, size_t position, std::span<const uint8_t> bytes);
  void release();

  // Of a slot with memory; 0 where no layer has state.
  VkDeviceAddress address(uint32_t slot) const {
    return slot_bytes_ == 0 ? 0 : memory_[slot].address();
  }

 private:
  void check_size(size_t bytes) const;
  Memory& with_memory(uint32_t number);

  const Device& device_;
  const size_t slot_bytes_;
  StateSlots slots_;
  std::vector<Memory> memory_;  // of each slot
};

}  // namespace hearth::vulkan
