#include "hearth/kv.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace hearth {

size_t kv_row_bytes(KvType type, size_t head_size) {
  if (type == KvType::f32) return head_size * 4;
  if (type == KvType::f16) return head_size * 2;
  if (head_size % kBlock != 0) {
    throw std::invalid_argument("KV type q80 needs a head size that is a multiple of 32, not " +
                                std::to_string(head_size));
  }
  return head_size + head_size / kBlock * sizeof(float);
}

KvCache::KvCache(const KvShape& shape) : shape_(shape), leaves_(shape.max_pages / kLeafPages + 1) {}

size_t KvCache::page_bytes() const {
  return shape_.layers * shape_.kv_heads * 2 * shape_.page_size *
         kv_row_bytes(shape_.type, shape_.head_size);
}

void KvCache::ensure(uint32_t number) {
  if (number >= shape_.max_pages) {
    throw std::invalid_argument("page " + std::to_string(number) + " of a KV cache of " +
                                std::to_string(shape_.max_pages) + " pages");
  }
  auto& leaf = leaves_[number / kLeafPages];
  if (leaf == nullptr) leaf = std::make_unique<Buffer[]>(kLeafPages);
  if (page(number).size() != 0 || page_bytes() == 0) return;
  page(number) = Buffer(page_bytes());
  ++allocated_;
}

void* KvCache::at(uint32_t number, size_t layer, size_t head, size_t which) {
  const size_t strip = shape_.page_size * kv_row_bytes(shape_.type, shape_.head_size);
  return page(number).data() + ((layer * shape_.kv_heads + head) * 2 + which) * strip;
}

void KvCache::store(const Kernels& kernels, void* rows, size_t slot, const float* x) const {
  const size_t size = shape_.head_size, offset = slot * size;
  switch (shape_.type) {
    case KvType::f32:
      std::memcpy(static_cast<float*>(rows) + offset, x, size * 4);
      return;
    case KvType::f16:
      kernels.to_f16(x, size, static_cast<uint16_t*>(rows) + offset);
      return;
    case KvType::q80: {
      auto* numbers = static_cast<int8_t*>(rows);
      auto* scales = reinterpret_cast<float*>(numbers + shape_.page_size * size);
      int32_t sums[4096 / kBlock];  // the largest head there can be; not needed here
      kernels.quantize(x, size, numbers + offset, scales + offset / kBlock, sums);
      return;
    }
  }
}

void KvCache::read_q80(const Kernels& kernels, const void* rows, size_t slots, float* out) const {
  const auto* numbers = static_cast<const int8_t*>(rows);
  const auto* scales =
      reinterpret_cast<const float*>(numbers + shape_.page_size * shape_.head_size);
  kernels.from_q80(numbers, scales, slots * shape_.head_size, out, false);
}

}  // namespace hearth
