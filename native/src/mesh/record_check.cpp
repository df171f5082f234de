#include "mesh/record_check.h"

#include <algorithm>
#include <cstring>

namespace hearth {
namespace {

constexpr size_t kPieceBytes = 1024;

uint64_t read64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// A bijection for every `next`, so that a difference stays one until the end.
uint64_t mix(uint64_t hash, uint64_t next) {
  hash = (hash ^ next) * 0x9e3779b97f4a7c15;
  return hash ^ hash >> 32;
}

// SplitMix64: expands the key.
uint64_t expand(uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

}  // namespace

RecordCheck::RecordCheck(const MeshKey& key) {
  uint64_t states[4];
  std::memcpy(states, key.data(), sizeof states);
  for (size_t i = 0; i < kPieceWords; ++i)
    words_[i] = static_cast<uint32_t>(expand(states[i % 4]) >> 32);
  start_ = expand(states[0]);
  end_ = expand(states[1]);
}

uint64_t RecordCheck::sum(const uint8_t* piece) const {
  constexpr size_t kHalf = kPieceWords / 2;
  uint32_t words[kPieceWords];
  std::memcpy(words, piece, sizeof words);
  uint64_t total = 0;
  for (size_t i = 0; i < kHalf; ++i)
    total += uint64_t{words[i] + words_[i]} * (words[i + kHalf] + words_[i + kHalf]);
  return total;
}

void RecordCheck::copy(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
                       uint8_t* out, uint8_t* tag) {
  uint64_t hash = mix(mix(start_, records_++), size);
  for (size_t at = 0; at < header_size; at += 8) hash = mix(hash, read64(header + at));
  for (size_t at = 0; at < size; at += kPieceBytes) {
    const size_t piece = std::min(kPieceBytes, size - at);
    std::memcpy(out + at, in + at, piece);
    if (piece == kPieceBytes) {
      hash = mix(hash, sum(out + at));
    } else {
      uint8_t padded[kPieceBytes] = {};
      std::memcpy(padded, out + at, piece);
      hash = mix(hash, sum(padded));
    }
  }
  const uint64_t both[2] = {hash, mix(hash, end_)};
  static_assert(sizeof both == kTagBytes);
  std::memcpy(tag, both, sizeof both);
}

void RecordCheck::seal(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
                       uint8_t* out) {
  copy(header, header_size, in, size, out, out + size);
}

bool RecordCheck::open(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
                       uint8_t* out) {
  uint8_t tag[kTagBytes];
  copy(header, header_size, in, size, out, tag);
  return std::memcmp(tag, in + size, kTagBytes) == 0;
}

}  // namespace hearth
