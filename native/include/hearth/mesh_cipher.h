// Protection of the mesh's frames: encryption by OpenSSL's libcrypto, or a keyed check alone.
//
// libcrypto is loaded when it is first needed, not linked: the build needs nothing, a wheel carries
// no copy, and the system's security updates apply. In Python it is the one that `ssl` uses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

enum class MeshCipher : uint8_t {
  plain,  // not encrypted; the keyed check finds damage, not forgery
  aes_256_gcm,
  chacha20_poly1305,
};

// Throws std::invalid_argument naming the ciphers there are.
MeshCipher parse_mesh_cipher(std::string_view name);

// Names of the ciphers that this machine can encrypt with, the faster one first: AES needs
// instructions that some CPUs lack (Raspberry Pi 4 and older). Empty without libcrypto.
std::vector<std::string> mesh_ciphers();

constexpr size_t kMeshKeyBytes = 32;
using MeshKey = std::array<uint8_t, kMeshKeyBytes>;

// Keys of one connection, a key for each direction. A key protects one connection only.
struct MeshKeys {
  MeshKey send{}, receive{};
};

// One direction of a connection: protects records, or opens them, in their order. Records are
// numbered from 0, and the number is part of what a tag covers: a record that is repeated, left
// out, moved, or sent back to its sender does not open.
class RecordCipher {
 public:
  static constexpr size_t kTagBytes = 16;

  virtual ~RecordCipher() = default;

  // Writes `size` bytes and the tag to `out`, which does not overlap `in`. The tag covers `header`
  // too, 0 or 16 bytes. Throws std::runtime_error if libcrypto fails.
  virtual void seal(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
                    uint8_t* out) = 0;
  // The reverse: reads `size` bytes and the tag from `in`. False if they are not what was sealed;
  // `out` is then to be discarded.
  virtual bool open(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
                    uint8_t* out) = 0;
};

enum class RecordWay : uint8_t { seal, open };

// For one of the two functions only. Throws std::runtime_error for a cipher that libcrypto does not
// offer here.
std::unique_ptr<RecordCipher> make_record_cipher(MeshCipher cipher, RecordWay way,
                                                 const MeshKey& key);

}  // namespace hearth
