#include "platform/memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "platform/pages.h"

namespace hearth {

#ifdef HEARTH_GUARD_BUFFERS

// The address sanitizer detects the end of a heap allocation, not of a mapping.
void Buffer::Free::operator()(uint8_t* at) const { ::operator delete(at, std::align_val_t{64}); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (size >> 40 != 0) throw std::bad_alloc();  // the sanitizer would abort
  auto* at = static_cast<uint8_t*>(::operator new(size, std::align_val_t{64}));
  std::memset(at, 0, size);
  data_ = {at, Free{size}};
}

void Buffer::gather(size_t, const std::atomic<bool>&) const {}

uint8_t* Arena::take(size_t size) {
  chunks_.push_back({Buffer(size), size});
  return chunks_.back().buffer.data();
}

#else

void Buffer::Free::operator()(uint8_t* at) const { unmap_pages(at, size); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  uint8_t* at = map_pages(size);
  if (at == nullptr) throw std::bad_alloc();
  data_ = {at, Free{size}};
}

void Buffer::gather(size_t filled, const std::atomic<bool>& stop) const {
  collapse_pages(data_.get(), filled, stop);
}

uint8_t* Arena::take(size_t size) {
  const size_t whole = (size + 63) / 64 * 64;
  if (whole < size) throw std::bad_alloc();
  if (chunks_.empty() || chunks_.back().buffer.size() - chunks_.back().used < whole)
    chunks_.push_back({Buffer(std::max(whole, mapping_unit())), 0});
  Chunk& chunk = chunks_.back();
  uint8_t* at = chunk.buffer.data() + chunk.used;
  chunk.used += whole;
  return at;
}

#endif

void Arena::gather(const std::atomic<bool>& stop) const {
  for (const Chunk& chunk : chunks_) chunk.buffer.gather(chunk.used, stop);
}

}  // namespace hearth
