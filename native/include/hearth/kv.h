// The KV cache of one shard, in pages. A page holds `page_size` positions of every layer and KV
// head of the shard. Who has which page is the root's business: here a page is a number, and its
// memory comes when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/memory.h"

namespace hearth {

// q80: int8 in blocks of 32 with an f32 scale each, as the kernel that quantizes activations makes
// them.
enum class KvType : uint8_t { f32, f16, q80 };

// Bytes of one position's key (or value) of one head. Throws std::invalid_argument when q80 finds
// no whole blocks.
size_t kv_row_bytes(KvType type, size_t head_size);

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

  // [page_size, head_size] of one page, layer (counted from the shard's first) and KV head; in q80
  // the int8 of all positions, then the scales of all.
  void* keys(uint32_t page, size_t layer, size_t head) { return at(page, layer, head, 0); }
  void* values(uint32_t page, size_t layer, size_t head) { return at(page, layer, head, 1); }

  // Writes one position's key or value, [head_size] of f32, at `slot` of what keys/values gave.
  void store(const Kernels& kernels, void* rows, size_t slot, const float* x) const;
  // The first `slots` positions of what keys/values gave in q80, as f32: [slots, head_size].
  void read_q80(const Kernels& kernels, const void* rows, size_t slots, float* out) const;

 private:
  void* at(uint32_t number, size_t layer, size_t head, size_t which);

  Buffer& page(uint32_t number) const { return leaves_[number / kLeafPages][number % kLeafPages]; }

  // The table grows with the pages in use: a plan may allow for millions that never come.
  static constexpr size_t kLeafPages = 1024;
  KvShape shape_;
  std::vector<std::unique_ptr<Buffer[]>> leaves_;
  size_t allocated_ = 0;
};

}  // namespace hearth
