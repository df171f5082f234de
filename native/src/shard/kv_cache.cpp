#include "shard/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "formats/names.h"

namespace hearth {

namespace {

constexpr Named<KvType> kKvTypes[] = {
    {"f32", KvType::f32}, {"f16", KvType::f16}, {"q80", KvType::q80}};

size_t whole_vectors(size_t slots) { return (slots + kKeySlots - 1) / kKeySlots * kKeySlots; }

// Bytes of one position's key (or value) of one head.
size_t row_bytes(KvType type, size_t head_size) {
  if (type == KvType::f32) return head_size * 4;
  if (type == KvType::f16) return head_size * 2;
  if (head_size % kBlock != 0) {
    throw std::invalid_argument("KV type q80 needs a head size that is a multiple of 32, not " +
                                std::to_string(head_size));
  }
  return head_size + head_size / kBlock * sizeof(float);
}

// One position is a column of the keys: its elements go to every row.
template <typename Element>
void scatter(const Element* from, size_t count, Element* to, size_t stride) {
  for (size_t i = 0; i < count; ++i) to[i * stride] = from[i];
}

}  // namespace

KvType parse_kv_type(std::string_view name) { return parse_name("KV type", kKvTypes, name); }

size_t kv_head_bytes(KvType type, size_t key_size, size_t value_size, size_t page_size) {
  return whole_vectors(page_size) * row_bytes(type, key_size) +
         page_size * row_bytes(type, value_size);
}

KvCache::KvCache(const KvShape& shape) : shape_(shape), leaves_(shape.max_pages / kLeafPages + 1) {
  for (const KvLayer& layer : shape.layers) {
    const Place place = {
        .offset = page_bytes_,
        .head_bytes = kv_head_bytes(shape.type, layer.key_size, layer.value_size, shape.page_size),
        .keys_bytes = stride() * row_bytes(shape.type, layer.key_size)};
    places_.push_back(place);
    page_bytes_ += layer.kv_heads * place.head_bytes;
  }
}

size_t KvCache::stride() const { return whole_vectors(shape_.page_size); }

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

std::span<const uint8_t> KvCache::content(uint32_t number) const {
  if (page_bytes() == 0) return {};
  const bool known = number < shape_.max_pages && leaves_[number / kLeafPages] != nullptr;
  if (!known || page(number).size() != page_bytes())
    throw std::invalid_argument("page " + std::to_string(number) + " has no content");
  return {page(number).data(), page_bytes()};
}

void KvCache::replace(uint32_t number, std::span<const uint8_t> bytes) {
  if (bytes.size() != page_bytes()) {
    throw std::invalid_argument(std::to_string(bytes.size()) + " bytes for a page of " +
                                std::to_string(page_bytes()));
  }
  ensure(number);
  std::copy(bytes.begin(), bytes.end(), page(number).data());
}

void KvCache::release_from(size_t first) {
  for (size_t leaf = first / kLeafPages; leaf < leaves_.size(); ++leaf) {
    if (leaves_[leaf] == nullptr) continue;
    const size_t begin = std::max(first, leaf * kLeafPages) % kLeafPages;
    for (size_t at = begin; at < kLeafPages; ++at) {
      Buffer& buffer = leaves_[leaf][at];
      if (buffer.size() == 0) continue;
      buffer = Buffer();
      --allocated_;
    }
    if (begin == 0) leaves_[leaf].reset();
  }
}

uint8_t* KvCache::at(uint32_t number, size_t layer, size_t head) {
  const Place& place = places_[layer];
  return page(number).data() + place.offset + head * place.head_bytes;
}

void KvCache::store_key(const Kernels& kernels, void* keys, size_t slot, const float* x,
                        size_t size) const {
  const size_t stride = this->stride();
  switch (shape_.type) {
    case KvType::f32:
      return scatter(x, size, static_cast<float*>(keys) + slot, stride);
    case KvType::f16: {
      uint16_t halves[kMostHeadSize];
      kernels.to_f16(x, size, halves);
      return scatter(halves, size, static_cast<uint16_t*>(keys) + slot, stride);
    }
    case KvType::q80: {
      int8_t codes[kMostHeadSize];
      float scales[kMostHeadSize / kBlock];
      HalfSums sums[kMostHeadSize / kBlock];  // not needed here
      kernels.quantize(x, size, codes, scales, sums);
      auto* rows = static_cast<int8_t*>(keys);
      scatter(codes, size, rows + slot, stride);
      return scatter(scales, size / kBlock, reinterpret_cast<float*>(rows + size * stride) + slot,
                     stride);
    }
  }
}

void KvCache::store_value(const Kernels& kernels, void* values, size_t slot, const float* x,
                          size_t size) const {
  const size_t offset = slot * size;
  switch (shape_.type) {
    case KvType::f32:
      std::memcpy(static_cast<float*>(values) + offset, x, size * 4);
      return;
    case KvType::f16:
      return kernels.to_f16(x, size, static_cast<uint16_t*>(values) + offset);
    case KvType::q80: {
      auto* codes = static_cast<int8_t*>(values);
      auto* scales = reinterpret_cast<float*>(codes + shape_.page_size * size);
      HalfSums sums[kMostHeadSize / kBlock];  // not needed here
      return kernels.quantize(x, size, codes + offset, scales + offset / kBlock, sums);
    }
  }
}

void KvCache::widen_keys(const Kernels& kernels, const void* keys, size_t size, float* out) const {
  const size_t count = size * stride();
  if (shape_.type == KvType::f16)
    return kernels.from_f16(static_cast<const uint16_t*>(keys), count, out, false);
  const auto* codes = static_cast<const int8_t*>(keys);
  kernels.keys_from_q80(codes, reinterpret_cast<const float*>(codes + count), size, stride(), out);
}

void KvCache::widen_values(const Kernels& kernels, const void* values, size_t slots, size_t size,
                           float* out) const {
  const size_t count = slots * size;
  if (shape_.type == KvType::f16)
    return kernels.from_f16(static_cast<const uint16_t*>(values), count, out, false);
  const auto* codes = static_cast<const int8_t*>(values);
  const auto* scales = reinterpret_cast<const float*>(codes + shape_.page_size * size);
  kernels.from_q80(codes, scales, count, out, false);
}

}  // namespace hearth
