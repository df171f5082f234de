// The pages of a KV cache in a GPU's memory, laid out as KvCache has them. A page's memory comes
// when it is first used, with that of its neighbours: drivers allow few allocations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>

#include "vulkan/device.h"

namespace hearth::vulkan {

class Pages {
 public:
  Pages(const Device& device, size_t page_bytes, size_t max_pages);

  size_t page_bytes() const { return page_bytes_; }
  size_t count() const { return used_.size(); }

  // Gives the page memory if it has none. Throws std::invalid_argument for a number out of range,
  // DeviceError when there is no memory.
  void ensure(uint32_t number);
  // Of a page with memory.
  VkDeviceAddress address(uint32_t number) const;
  // The content of a page. Throw std::invalid_argument for a page without memory, or another size.
  void read(uint32_t number, std::span<uint8_t> out) const;
  void write(uint32_t number, std::span<const uint8_t> bytes);
  void release_from(size_t first);

 private:
  size_t offset(uint32_t number) const { return number % run_pages_ * page_bytes_; }
  void check_size(size_t bytes) const;

  const Device& device_;
  const size_t page_bytes_, max_pages_;
  size_t run_pages_;  // of one allocation
  std::map<size_t, Memory> runs_;
  std::set<uint32_t> used_;
};

}  // namespace hearth::vulkan
