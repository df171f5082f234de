#include "hearth/kv.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace hearth {

KvCache::KvCache(const KvShape& shape) : shape_(shape), pages_(shape.max_pages) {}

size_t KvCache::page_bytes() const {
  return shape_.layers * shape_.kv_heads * 2 * shape_.page_size * shape_.head_size * number_bytes();
}

void KvCache::ensure(uint32_t page) {
  if (page >= shape_.max_pages) {
    throw std::invalid_argument("page " + std::to_string(page) + " of a KV cache of " +
                                std::to_string(shape_.max_pages) + " pages");
  }
  if (pages_[page].size() != 0 || page_bytes() == 0) return;
  pages_[page] = Buffer(page_bytes());
  ++allocated_;
}

void* KvCache::at(uint32_t page, size_t layer, size_t head, size_t which) {
  const size_t strip = shape_.page_size * shape_.head_size * number_bytes();
  return pages_[page].data() + ((layer * shape_.kv_heads + head) * 2 + which) * strip;
}

void KvCache::store(const Kernels& kernels, void* rows, size_t slot, const float* x) const {
  const size_t offset = slot * shape_.head_size;
  if (shape_.type == KvType::f32) {
    std::memcpy(static_cast<float*>(rows) + offset, x, shape_.head_size * 4);
  } else {
    kernels.to_f16(x, shape_.head_size, static_cast<uint16_t*>(rows) + offset);
  }
}

}  // namespace hearth
