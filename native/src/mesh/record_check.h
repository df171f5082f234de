// The keyed check of plain frames: NH, the hash of UMAC (RFC 4418, 5.2.2), over 1 KiB at a time.
//
// It finds damage, and is fast without any special instruction: sums of products of 32-bit words,
// which compilers vectorize. Two different pieces of 1 KiB have equal sums for one in 2^32 keys.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "hearth/mesh_cipher.h"

namespace hearth {

class RecordCheck : public RecordCipher {
 public:
  explicit RecordCheck(const MeshKey& key);

  void seal(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
            uint8_t* out) override;
  bool open(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
            uint8_t* out) override;

 private:
  static constexpr size_t kPieceWords = 256;

  // Copies `size` bytes and writes their tag, [kTagBytes]; counts the record.
  void copy(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size, uint8_t* out,
            uint8_t* tag);
  uint64_t sum(const uint8_t* piece) const;

  std::array<uint32_t, kPieceWords> words_;
  uint64_t start_, end_;
  uint64_t records_ = 0;
};

}  // namespace hearth
