// Frames of a mesh as a peer sends them, written here a second time: for tests and fuzz targets
// that play a rank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "hearth/mesh_cipher.h"

namespace hearth::test {

inline constexpr uint32_t kMagic = 0x48525448;
inline constexpr size_t kHeader = 16, kTag = 16, kRecord = 64 << 10;

inline MeshKey key(size_t from, size_t to) {
  MeshKey key;
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(from * 16 + to + i * 37);
  return key;
}

// Of rank `rank`'s connections, by rank.
inline std::vector<MeshKeys> keys(size_t ranks, size_t rank) {
  std::vector<MeshKeys> keys(ranks);
  for (size_t r = 0; r < ranks; ++r) keys[r] = {key(rank, r), key(r, rank)};
  return keys;
}

// The frames that rank `from` sends to rank `to`, one after another.
class FrameWriter {
 public:
  FrameWriter(MeshCipher cipher, size_t from, size_t to)
      : sealer_(make_record_cipher(cipher, RecordWay::seal, key(from, to))) {}

  std::vector<uint8_t> frame(uint32_t step, uint32_t index, const std::vector<uint8_t>& payload) {
    const uint32_t header[4] = {kMagic, step, index, static_cast<uint32_t>(payload.size())};
    std::vector<uint8_t> out(kHeader);
    std::memcpy(out.data(), header, kHeader);
    size_t at = 0;
    do {
      const size_t size = std::min(kRecord, payload.size() - at), head = at == 0 ? kHeader : 0;
      std::vector<uint8_t> record(size + kTag);
      sealer_->seal(out.data(), head, payload.data() + at, size, record.data());
      out.insert(out.end(), record.begin(), record.end());
      at += size;
    } while (at < payload.size());
    return out;
  }

 private:
  std::unique_ptr<RecordCipher> sealer_;
};

// The ciphers that can be tested here: without libcrypto only the check.
inline std::vector<MeshCipher> ciphers() {
  std::vector<MeshCipher> all{MeshCipher::plain};
  for (const auto& name : mesh_ciphers()) all.push_back(parse_mesh_cipher(name));
  return all;
}

}  // namespace hearth::test
