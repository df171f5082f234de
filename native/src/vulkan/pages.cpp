#include "vulkan/pages.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace hearth::vulkan {
namespace {

constexpr size_t kRunBytes = size_t{32} << 20;

}  // namespace

Pages::Pages(const Device& device, size_t page_bytes, size_t max_pages)
    : device_(device),
      page_bytes_(page_bytes),
      max_pages_(max_pages),
      run_pages_(std::max<size_t>(kRunBytes / std::max<size_t>(page_bytes, 1), 1)) {}

void Pages::ensure(uint32_t number) {
  if (number >= max_pages_) {
    throw std::invalid_argument("page " + std::to_string(number) + " of a KV cache of " +
                                std::to_string(max_pages_) + " pages");
  }
  if (used_.contains(number) || page_bytes_ == 0) return;
  const size_t run = number / run_pages_;
  if (!runs_.contains(run)) {
    const size_t pages = std::min(run_pages_, max_pages_ - run * run_pages_);
    runs_.emplace(run, Memory(device_, pages * page_bytes_, Place::device));
  }
  used_.insert(number);
}

VkDeviceAddress Pages::address(uint32_t number) const {
  return page_bytes_ == 0 ? 0 : runs_.at(number / run_pages_).address() + offset(number);
}

void Pages::check_size(size_t bytes) const {
  if (bytes == page_bytes_) return;
  throw std::invalid_argument(std::to_string(bytes) + " bytes for a page of " +
                              std::to_string(page_bytes_));
}

void Pages::read(uint32_t number, std::span<uint8_t> out) const {
  if (page_bytes_ == 0) return;
  if (!used_.contains(number))
    throw std::invalid_argument("page " + std::to_string(number) + " has no content");
  check_size(out.size());
  device_.read(runs_.at(number / run_pages_), offset(number), out);
}

void Pages::write(uint32_t number, std::span<const uint8_t> bytes) {
  check_size(bytes.size());
  ensure(number);
  if (page_bytes_ == 0) return;
  device_.write(runs_.at(number / run_pages_), offset(number), bytes);
}

void Pages::release_from(size_t first) {
  used_.erase(used_.lower_bound(static_cast<uint32_t>(std::min(first, max_pages_))), used_.end());
  const size_t kept = used_.empty() ? 0 : *used_.rbegin() / run_pages_ + 1;
  runs_.erase(runs_.lower_bound(kept), runs_.end());
}

}  // namespace hearth::vulkan
