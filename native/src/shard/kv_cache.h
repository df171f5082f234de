// The KV cache of one shard, in pages. A page holds `page_size` positions of every layer and KV
// head of the shard. The root assigns pages to sequences: here a page is a number, and its
// memory comes when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/types.h"
#include "platform/memory.h"

namespace hearth {

struct KvLayer {
  size_t kv_heads, key_size, value_size;
};

struct KvShape {
  std::vector<KvLayer> layers;
  size_t page_size;  // positions
  size_t max_pages;
  KvType type;
};

class KvCache {
 public:
  explicit KvCache(const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  size_t page_bytes() const { return page_bytes_; }
  // Pages that have memory now.
  size_t pages() const { return allocated_; }
  size_t size_bytes() const { return allocated_ * page_bytes(); }

  // Gives the page memory if it has none. Throws std::invalid_argument for a number out of range,
  // std::bad_alloc when there is no memory.
  void ensure(uint32_t number);
  // The bytes of a page, page_bytes of them. Throws std::invalid_argument for a page without
  // memory.
  std::span<const uint8_t> content(uint32_t number) const;
  // Replaces the bytes of a page, and gives it memory if it has none. Throws std::invalid_argument
  // for a number out of range or another size, std::bad_alloc.
  void replace(uint32_t number, std::span<const uint8_t> bytes);
  // Gives the memory of page `first` and those after it back to the system; their content is lost.
  void release_from(size_t first);

  // Bytes of one KV head's keys and values of a layer in a page, which lie together.
  size_t head_bytes(size_t layer) const { return places_[layer].head_bytes; }
  // Slots between one row of keys and the next: page_size, filled up to whole vectors.
  size_t stride() const;
  // Of one page, layer (counted from the shard's first) and KV head: keys [key_size, stride] and
  // values [page_size, value_size], as AttendArgs wants them; in q80 the int8 of all, then the
  // scales of all, [key_size / 32, stride] and [page_size, value_size / 32].
  void* keys(uint32_t page, size_t layer, size_t head) { return at(page, layer, head); }
  void* values(uint32_t page, size_t layer, size_t head) {
    return at(page, layer, head) + places_[layer].keys_bytes;
  }

  // Writes one position's key or value, [size] of f32, at `slot` of what keys/values gave. size:
  // the layer's key_size or value_size.
  void store_key(const Kernels& kernels, void* keys, size_t slot, const float* x,
                 size_t size) const;
  void store_value(const Kernels& kernels, void* values, size_t slot, const float* x,
                   size_t size) const;
  // Makes f32 of the memory that `keys` gave, [size, stride], and of the first `slots` positions of
  // that of `values`, [slots, size]. Of f16 and q80.
  void widen_keys(const Kernels& kernels, const void* keys, size_t size, float* out) const;
  void widen_values(const Kernels& kernels, const void* values, size_t slots, size_t size,
                    float* out) const;

 private:
  uint8_t* at(uint32_t number, size_t layer, size_t head);

  Buffer& page(uint32_t number) const { return leaves_[number / kLeafPages][number % kLeafPages]; }

  // The table grows with the pages in use: a plan may allow for millions that never come.
  static constexpr size_t kLeafPages = 1024;
  // Of a layer within a page.
  struct Place {
    size_t offset, head_bytes, keys_bytes;
  };
  KvShape shape_;
  std::vector<Place> places_;
  size_t page_bytes_ = 0;
  std::vector<std::unique_ptr<Buffer[]>> leaves_;
  size_t allocated_ = 0;
};

}  // namespace hearth
