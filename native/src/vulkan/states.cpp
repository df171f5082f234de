#include "vulkan/states.h"

#include <numeric>
#include <stdexcept>
#include <string>

namespace hearth::vulkan {

States::States(const Device& device, const StateShape& shape)
    : device_(device),
      slot_bytes_(std::accumulate(shape.floats.begin(), shape.floats.end(), size_t{0}) *
                  sizeof(float)),
      slots_(slot_bytes_ > 0 ? shape.slots : 0),
      memory_(slots_.size()) {}

size_t States::size_bytes() const {
  size_t bytes = 0;
  for (const Memory& each : memory_) bytes += each.size();
  return bytes;
}

void States::check(std::span<const SequenceStep> sequences) const {
  if (slot_bytes_ > 0) slots_.check(sequences);
}

void States::begin(std::span<const SequenceStep> sequences) {
  if (slot_bytes_ == 0) return;
  slots_.begin(sequences);
  for (const SequenceStep& sequence : sequences) {
    const Memory& memory = with_memory(sequence.slot);
    if (sequence.position == 0) device_.write(memory, 0, std::vector<uint8_t>(slot_bytes_));
  }
}

void States::end(std::span<const SequenceStep> sequences) {
  if (slot_bytes_ > 0) slots_.end(sequences);
}

void States::copy(uint32_t from, uint32_t to, size_t position) {
  if (slot_bytes_ == 0) return;
  slots_.check_range(from);
  slots_.check_range(to);
  slots_.check_holds(from, position);
  if (from == to) return;
  const Memory& into = with_memory(to);
  Commands commands(device_);
  commands.copy(memory_[from], 0, into, 0, slot_bytes_);
  commands.end();
  device_.run(commands);
  slots_.set(to, position);
}

void States::read(uint32_t slot, size_t position, std::span<uint8_t> out) const {
  check_size(out.size());
  if (slot_bytes_ == 0) return;
  slots_.check_holds(slot, position);
  device_.read(memory_[slot], 0, out);
}

void States::write(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  check_size(bytes.size());
  if (slot_bytes_ == 0) return;
  slots_.check_range(slot);
  device_.write(with_memory(slot), 0, bytes);
  slots_.set(slot, position);
}

void States::release() {
  slots_.clear();
  for (Memory& each : memory_) each = Memory();
}

void States::check_size(size_t bytes) const {
  if (bytes == slot_bytes_) return;
  throw std::invalid_argument(std::to_string(bytes) + " bytes for a state of " +
                              std::to_string(slot_bytes_));
}

Memory& States::with_memory(uint32_t number) {
  if (memory_[number].size() == 0) memory_[number] = Memory(device_, slot_bytes_, Place::device);
  return memory_[number];
}

}  // namespace hearth::vulkan
