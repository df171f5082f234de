#include "shard/disk_sum.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace hearth {
namespace {

constexpr size_t kWords = 1024;  // of a block
constexpr size_t kWordBytes = sizeof(uint32_t);

// A number that looks like chance, as splitmix64 makes it.
constexpr uint64_t mixed(uint64_t number) {
  number = (number + 1) * 0x9e3779b97f4a7c15u;
  number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9u;
  number = (number ^ (number >> 27)) * 0x94d049bb133111ebu;
  return number ^ (number >> 31);
}

// Factors are odd: no change of a word is lost in a product.
constexpr std::array<uint32_t, kWords> word_factors() {
  std::array<uint32_t, kWords> factors{};
  for (size_t i = 0; i < kWords; ++i) factors[i] = static_cast<uint32_t>(mixed(i)) | 1;
  return factors;
}

constexpr std::array<uint32_t, kWords> kFactors = word_factors();

uint64_t weighted(const uint8_t* bytes, size_t first, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, bytes + i * kWordBytes, kWordBytes);
    sum += uint64_t{word} * kFactors[first + i];
  }
  return sum;
}

}  // namespace

uint64_t disk_sum(uint64_t offset, std::span<const uint8_t> bytes) {
  if (offset % kWordBytes != 0 || bytes.size() % kWordBytes != 0)
    throw std::logic_error("a part of weights on disk that does not end on a word");
  uint64_t sum = 0, word = offset / kWordBytes;
  const uint64_t end = word + bytes.size() / kWordBytes;
  const uint8_t* at = bytes.data();
  while (word < end) {
    const size_t first = word % kWords;
    const size_t count = std::min<uint64_t>(kWords - first, end - word);
    sum += (count == kWords ? weighted(at, 0, kWords) : weighted(at, first, count)) *
           (mixed(word / kWords) | 1);
    at += count * kWordBytes;
    word += count;
  }
  return sum;
}

}  // namespace hearth
