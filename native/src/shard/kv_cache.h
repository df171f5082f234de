// The KV cache of one shard, in pages. A page holds `page_size` positions of every layer and KV
// head of the shard. The root assigns pages to sequences: here a page is a number, and its
// memory comes when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/types.h"
#include "platform/memory.h"

namespace hearth {

struct KvShape {
  size_t layers, kv_heads, head_size;
  size_t page_size;  // positions
  size_t max_pages;
  KvType type;
};

class KvCache {
 public:
  explicit KvCache(const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  size_t page_bytes() const;
  // Pages that have memory now.
  size_t pages() const { return allocated_; }
  size_t size_bytes() const { return allocated_ * page_bytes(); }

  // Gives the page memory if it has none. Throws std::invalid_argument for a number out of range,
  // std::bad_alloc when there is no memory.
  void ensure(uint32_t number);

  // Slots between one row of keys and the next: page_size, filled up to whole vectors.
  size_t stride() const;
  // Of one page, layer (counted from the shard's first) and KV head: keys [head_size, stride] and
  // values [page_size, head_size], as AttendArgs wants them; in q80 the int8 of all, then the
  // scales of all, [head_size / 32, stride] and [page_size, head_size / 32].
  void* keys(uint32_t page, size_t layer, size_t head) { return at(page, layer, head); }
  void* values(uint32_t page, size_t layer, size_t head) {
    return at(page, layer, head) + keys_bytes_;
  }

  // Writes one position's key or value, [head_size] of f32, at `slot` of what keys/values gave.
  void store_key(const Kernels& kernels, void* keys, size_t slot, const float* x) const;
  void store_value(const Kernels& kernels, void* values, size_t slot, const float* x) const;
  // What keys gave, and the first `slots` positions of what values gave, of f16 or q80, as f32:
  // [head_size, stride] and [slots, head_size].
  void widen_keys(const Kernels& kernels, const void* keys, float* out) const;
  void widen_values(const Kernels& kernels, const void* values, size_t slots, float* out) const;

 private:
  uint8_t* at(uint32_t number, size_t layer, size_t head);

  Buffer& page(uint32_t number) const { return leaves_[number / kLeafPages][number % kLeafPages]; }

  // The table grows with the pages in use: a plan may allow for millions that never come.
  static constexpr size_t kLeafPages = 1024;
  KvShape shape_;
  size_t keys_bytes_, head_bytes_;
  std::vector<std::unique_ptr<Buffer[]>> leaves_;
  size_t allocated_ = 0;
};

}  // namespace hearth
